"""The contract's generated messages and stubs, from proto/whence/v1."""
