"""Sharing of a database by several servers: leases, ids, errands, each other's logs."""
