"""JSON API: the contract's RPCs over HTTP, in protobuf's JSON mapping."""
