"""Retention: deletion of generations by age and size, and of remains; space given back."""
