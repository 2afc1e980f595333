"""The `train` command: a small language model trained on text files, on record."""
