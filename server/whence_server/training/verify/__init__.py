"""The `verify-model` command: a model compared with its training record."""
