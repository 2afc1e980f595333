"""Replay of generations: one pass over prompt and output, and every choice made again.

passes -> rows -> comparison, or beams -> verify; `noise` measures the arithmetic's own noise.
"""
