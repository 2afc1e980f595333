"""The whence server: a language model's tokens, streamed with the reason for each."""
