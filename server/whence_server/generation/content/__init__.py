"""Content of a generation: whole in its caller's stream, and by the policy on record."""
