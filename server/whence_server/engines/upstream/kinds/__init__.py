"""One adapter for each kind of upstream."""
