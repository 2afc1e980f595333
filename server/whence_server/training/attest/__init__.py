"""Signatures of a trained model and of its record, and documents about both in others' formats."""
