"""The recorder that watches a Trainer and writes its training record."""
