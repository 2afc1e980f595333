"""OTLP's building blocks for spans, events and metrics: attributes, protobuf bytes, the scope."""
