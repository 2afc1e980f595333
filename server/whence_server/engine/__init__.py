"""The engine: a process of its own that owns the model and chooses the tokens.

Importing this package imports no torch: the front uses `link` and `messages` of it.
"""
