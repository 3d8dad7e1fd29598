"""What computes: numbers of one kind of kernel are not bit for bit those of another."""

import torch


def kernels_of(device: torch.device) -> str:
    """Name of the GPU, such as `NVIDIA H200`, or instruction set of the CPU, such as `AVX512`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability()
    return device.type
