"""Demo: a small model is trained on this machine, served, and its generations are shown.

The serving path does not import this package, which needs the training packages.
"""
