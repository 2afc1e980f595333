"""Methods that explain an output: pure functions of a model and a target, with torch.

The analysis process alone imports this package: a method computes for seconds.
"""
