"""Text and token ids: tokenizing, detokenizing, stop strings, chat templates."""
