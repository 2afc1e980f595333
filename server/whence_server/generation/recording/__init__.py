"""Generations that other processes make, put on record as they report them."""
