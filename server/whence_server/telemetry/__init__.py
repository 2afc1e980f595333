"""OpenTelemetry spans, events and metrics, made from the journal's entries."""
