"""The `train` command, which trains a small language model on text files and records it."""
