"""The contract over gRPC: servicers, conversions, interceptors, the status table."""
