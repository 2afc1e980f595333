"""Delivery of encoded spans and events to a destination: batching, retries, outcomes."""
