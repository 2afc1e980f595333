"""Probes of the model while it decodes: direct sources, and the layers' readouts."""
