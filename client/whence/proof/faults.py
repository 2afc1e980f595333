"""Errors of proofs."""


class ProofError(Exception):
    """Fault that a check has found; the text says what, where, and what would be right."""


class FormatError(ProofError):
    """File that is no proof: damaged, of an unknown version, or larger than allowed."""
