"""OpenAI's API over whence's own generations: chat completions, completions, responses, models."""
