"""The record of a training run (its lineage): writing, reading and looking up.

This package does not import torch; `whence_server.training` holds the code that computes.
"""
