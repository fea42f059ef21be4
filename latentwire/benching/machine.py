"""What this machine's matrix products reach, measured in the run that it is compared with."""

import time

import torch

from latentwire.training.records import settle

_REPEATS = 5
_SECONDS = 0.2
"""Each repeat multiplies for about so long."""


def matmul_peak(device: torch.device, dtype: torch.dtype, *, size: int | None = None) -> float:
    """Floating-point operations a second of large square products, the best of some repeats.

    With the threads that the process has. It is what a step could reach at most if it were nothing
    but such products, not what a data sheet promises.

    Args:
        size: rows of the matrices; the default fills a GPU, or a core's cache and more.
    """
    size = size or (8192 if device.type == "cuda" else 1536)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    operations = 2 * size**3
    torch.mm(left, right, out=out)  # the first one also sets the library up
    once = _seconds(device, left, right, out, 1)
    number = max(1, round(_SECONDS / once))
    best = min(_seconds(device, left, right, out, number) / number for _ in range(_REPEATS))
    return operations / best


def _seconds(
    device: torch.device, left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, number: int
) -> float:
    settle(device)
    start = time.perf_counter()
    for _ in range(number):
        torch.mm(left, right, out=out)
    settle(device)
    return time.perf_counter() - start


def describe(device: torch.device) -> str:
    """The device's name, and how many threads compute where it is a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
