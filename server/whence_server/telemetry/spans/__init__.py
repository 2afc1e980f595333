"""Encoders of journal entries: spans and log events, in protobuf."""
