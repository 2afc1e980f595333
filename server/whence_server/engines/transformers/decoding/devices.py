"""Choice of a device's implementation of the kernels."""

import torch

from whence_server.engines.transformers.decoding.kernels import Kernels


def choose_kernels(device: torch.device) -> Kernels:
    """Return the implementation for a device; the CPU's is compiled on first use."""
    if device.type == "cpu":
        from whence_server.engines.transformers.decoding import cpu_kernels

        return cpu_kernels
    from whence_server.engines.transformers.decoding import torch_kernels

    return torch_kernels
