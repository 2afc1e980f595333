"""Metrics of the server: recorded once, shown on a Prometheus page and pushed over OTLP."""
