"""Proof that a frozen decoder is the one that was loaded: a hash over everything it holds."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

_CHUNK = 1 << 26
"""Bytes that are on the host at a time."""


def fingerprint(model: Any) -> dict[str, str]:
    """The SHA-256 of each tensor that a model holds and does not train, by name.

    Weights and buffers, those that no checkpoint holds included, and what belongs to a quantised
    weight: its scales and codes. A tensor's hash covers its dtype, its shape and its bytes; of a
    sharded one, this rank's part.
    """
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    # bitsandbytes says what a quantised weight consists of in the state dict only.
    tensors = model.state_dict() | dict(model.named_buffers())
    return {name: _hash(tensors[name]) for name in sorted(tensors) if name not in trained}


def combined(fingerprints: Mapping[str, str]) -> str:
    """One SHA-256 over the hashes of all tensors."""
    lines = "".join(f"{name} {fingerprints[name]}\n" for name in sorted(fingerprints))
    return hashlib.sha256(lines.encode()).hexdigest()


def of_weights(model: Any, fingerprints: Mapping[str, str]) -> str:
    """One SHA-256 over what a model's files hold, the same on every machine: what it computes when
    it is loaded, such as frequencies, is rounded otherwise by another processor.

    Args:
        fingerprints: what ``fingerprint`` found of it.
    """
    held = model.state_dict().keys()
    return combined({name: found for name, found in fingerprints.items() if name in held})


def of_copies(parts: Sequence[str], *, shard: int) -> str:
    """One hash of a decoder, from those of the ranks of its group in their order.

    Args:
        shard: ranks that hold one copy together; every copy has the same hashes, unless ranks
            differ in more than what they hold.
    """
    copies = {tuple(parts[first : first + shard]) for first in range(0, len(parts), shard)}
    own = copies.pop() if len(copies) == 1 else tuple(parts)
    return own[0] if len(own) == 1 else combined({str(i): part for i, part in enumerate(own)})


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """One SHA-256 over some tensors with their names."""
    return combined({name: _hash(tensor) for name, tensor in tensors.items()})


def settings_of(model: Any) -> dict[str, Any]:
    """What a model's configuration says of how it computes, as JSON holds it; not where it is
    from, nor the version of the library that wrote it down."""
    tree = json.loads(json.dumps(model.config.to_dict(), default=str))
    return {key: tree[key] for key in tree if key != "transformers_version" and key[0] != "_"}


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of tensors that differ, or are in one of both only."""
    names = sorted(before.keys() | now.keys())
    return [name for name in names if before.get(name) != now.get(name)]


def _hash(tensor: Tensor) -> str:
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    # As bytes, since NumPy has no bfloat16.
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    for chunk in data.split(_CHUNK):
        found.update(chunk.cpu().numpy())
    return found.hexdigest()
