"""Trains, and records what changed the weights: torch's and transformers' side of the lineage."""
