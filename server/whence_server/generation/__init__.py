"""Generations: from an admitted request through the engine's steps to the journal."""
