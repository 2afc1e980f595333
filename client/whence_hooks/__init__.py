"""Hooks that put generations of a service's own process on record with a whence server.

They need the client's packages alone; what they hook into is imported when it is used.
"""
