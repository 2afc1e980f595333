"""Encoders of journal entries as OTLP spans and log events."""
