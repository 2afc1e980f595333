"""Signed statements about generations, and the keys that sign them."""
