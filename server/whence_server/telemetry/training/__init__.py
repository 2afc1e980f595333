"""A training run's record as a trace and as metrics: pure functions of what is recorded."""
