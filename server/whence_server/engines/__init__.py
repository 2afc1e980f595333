"""The engines: each chooses tokens behind the interface of `domain/engine.py`.

Only `app` and `launch` know which one runs.
"""
