"""Copies of whole journals: to another database, to a backup and back."""
