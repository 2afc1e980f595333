"""Emergence of a text's probability along the checkpoints of a recorded training run."""
