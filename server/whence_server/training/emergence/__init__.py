"""When a prediction emerged: its loss along the checkpoints of a recorded run."""
