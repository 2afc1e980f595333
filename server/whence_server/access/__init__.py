"""Admission of callers: TLS, identities, scopes and limits."""
