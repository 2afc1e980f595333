"""Immutable types that all packages of the server share; standard library only."""
