"""Languages that constrain an output: checked in the text process, compiled again in the engine.

llguidance computes the tokens that remain. It needs no torch.
"""
