"""The journal's entries as OpenTelemetry spans, sent durably by a cursor on the journal."""
