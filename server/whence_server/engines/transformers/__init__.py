"""The engine: the process that holds the model and chooses the tokens.

Importing this package does not import torch, as the front imports `supervisor` and `handshake`.
"""
