"""Host tensors on their way to a device: one copy each, which the host does not wait for.

A copy from pinned memory is queued like any kernel; one from pageable memory makes the host wait
for all work before it. On the CPU nothing is copied and nothing pinned.
"""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def moved(batch: T, device: torch.device) -> T:
    """A dataclass whose fields that are tensors are on ``device``; the same one if they are."""
    return _with_tensors(batch, lambda tensor: _moved(tensor, device))


def pinned(batch: T, device: torch.device) -> T:
    """A dataclass of host tensors in pinned memory, where ``device`` reads from it faster."""
    if device.type != "cuda":
        return batch
    return _with_tensors(batch, lambda tensor: tensor.pin_memory())


def placed(values: Sequence[int], device: torch.device) -> Tensor:
    """Integers as a tensor [n] on ``device``."""
    tensor = torch.tensor(values, dtype=torch.long, pin_memory=device.type == "cuda")
    return _moved(tensor, device)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


def _with_tensors(batch: T, change: Any) -> T:
    assert is_dataclass(batch)
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    own = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    changed = {name: change(tensor) for name, tensor in own.items()}
    if all(changed[name] is tensor for name, tensor in own.items()):
        return batch
    found: T = replace(batch, **changed)  # type: ignore[type-var]
    return found
