"""Generations: admission of requests, the engine's steps, and their entries in the journal."""
