"""HTTP fronts: other people's clients, over the same generations as gRPC."""
