"""Proofs of generations: statements, keys, Merkle trees and bundles, checked without a server.

These modules need `cryptography` (the extra `proof`), which they import when they check a
signature. The server imports them too, so that each format is written down once.
"""
