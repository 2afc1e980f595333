"""gRPC services of the contract: servicers, conversions, errors as statuses."""
