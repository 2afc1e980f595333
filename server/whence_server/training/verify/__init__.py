"""The `verify-model` command, which compares a model with its training record."""
