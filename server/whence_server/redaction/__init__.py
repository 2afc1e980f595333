"""Detection of texts that must not be stored, in a text as it grows."""
