"""The `whence` command."""
