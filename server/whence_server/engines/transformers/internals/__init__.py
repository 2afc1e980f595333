"""Probes of a model while it decodes: sources from attention, and readouts of its layers."""
