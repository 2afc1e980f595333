"""What the server measures: recorded once, shown on a Prometheus page and pushed over OTLP."""
