"""A small real model, trained on this machine, and a guided look at what whence says of it.

Nothing of the serving path imports this package: it needs the training stack.
"""
