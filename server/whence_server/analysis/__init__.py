"""Work that must not stall decoding: verification of generations, in a process of its own.

`host` and `question` belong to the front. `process` and `replay` run in the analysis process, with
torch.
"""
