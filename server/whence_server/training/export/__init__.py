"""The process that exports the trace of a recorded training run."""
