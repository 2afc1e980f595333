"""Encryption of the journal's content, with a key for each generation."""
