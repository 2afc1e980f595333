"""A witness (C2SP tlog-witness): it cosigns checkpoints of logs that only grow."""
