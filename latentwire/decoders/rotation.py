"""How a decoder turns its keys by their position: found among known ways by trying them.

Models differ in it: one half of a key against the other, neighbours against each other, part of a
key only, in some layers not at all. A layer's way is the one that brings the keys of one token,
repeated, to rest.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)

Way = Callable[[Tensor, Tensor], Tensor]
"""(keys [..., length, head_dim], positions [length]) -> the keys as they stand in the cache."""

_AT_REST = 0.2
"""Of the differences between positions in the cache: what the right way may leave of them, as half
precision does. A wrong way leaves most of them, or makes them larger."""
_UNFIT = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a model's own code raises where it is not made for such keys, or for such a call."""
_SAME_LENGTH = 0.02
"""What half precision may change of a key's length."""
_UNTURNED = 0.05
"""Of the keys' size: differences between positions that are rounding, and no turning."""


@dataclass(frozen=True)
class Rotation:
    """How a decoder's layers turn their keys."""

    ways: tuple[Way | None, ...]
    """Of each layer; None where its keys stay as they are."""

    def __call__(self, keys: Tensor, place: Tensor) -> Tensor:
        """[layers, ..., length, head_dim] keys of every layer, turned to ``place`` [length]."""
        if len(set(self.ways)) == 1:
            return self.of_layer(0, keys, place)
        return torch.stack([self.of_layer(i, part, place) for i, part in enumerate(keys)])

    def of_layer(self, layer: int, keys: Tensor, place: Tensor) -> Tensor:
        """[..., length, head_dim] keys of one layer, turned to ``place`` [length]."""
        way = self.ways[layer]
        return keys if way is None else way(keys, place)


def rotaries_of(model: nn.Module) -> list[nn.Module]:
    """The modules that give angles for positions: one of a model, or one of each of its layers."""
    return [m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")]


def rotation_of(name: str, rotaries: Sequence[nn.Module], keys: Sequence[Tensor]) -> Rotation:
    """How the decoder ``name`` turns keys. A layer whose way is not known is named in the log, and
    its keys stay as they are.

    Args:
        rotaries: its modules for angles; there may be none.
        keys: of each layer [1, heads, length, head_dim], as one token repeated has them in the
            cache. Its states are then the same at every position, as attention to equal values
            gives their value, and so are its keys before they are turned.
    """
    known = [way for rotary in _unlike(rotaries) for way in _known(rotary)]
    found = [_way_of(part, known) for part in keys]
    unknown = [
        layer
        for layer, (way, part) in enumerate(zip(found, keys, strict=True))
        if way is None and _differs(part) and (known or _keeps_length(part))
    ]
    if unknown:
        _log.warning(
            "decoders.%s: how keys are turned by position is not known of %d of its %d layers; "
            "what a deep prefix adds to keys there is not turned along, and keys are compared as "
            "they stand",
            name,
            len(unknown),
            len(keys),
        )
    return Rotation(ways=tuple(found))


def _unlike(rotaries: Sequence[nn.Module]) -> list[nn.Module]:
    """One of each kind of modules with the same frequencies."""
    kinds: dict[tuple[object, ...], nn.Module] = {}
    for rotary in rotaries:
        held = [tensor.flatten().tolist() for tensor in rotary.buffers()]
        kinds.setdefault((type(rotary), repr(held)), rotary)
    return list(kinds.values())


def _differs(keys: Tensor) -> bool:
    """Whether the keys of one token differ by their position, by more than rounding."""
    return _apart(keys) > _UNTURNED * float(keys.float().square().mean().sqrt())


def _keeps_length(keys: Tensor) -> bool:
    """Whether they all have one length, as what is turned keeps its own. Keys of inputs to which
    positions are added have not."""
    lengths = keys.float().norm(dim=-1)
    return bool(((lengths / lengths[..., :1]) - 1).abs().max() < _SAME_LENGTH)


def _way_of(keys: Tensor, known: Sequence[Way]) -> Way | None:
    """The way that leaves least of the differences between positions, if it leaves little."""
    place = torch.arange(keys.shape[-2], device=keys.device)
    best, least = None, _AT_REST * _apart(keys)
    for way in known:
        try:
            left = _apart(way(keys, -place))
        except _UNFIT:
            continue
        if left < least:
            best, least = way, left
    return best


def _apart(keys: Tensor) -> float:
    """Root mean square of what positions differ in from the first."""
    keys = keys.float()
    return float((keys - keys[..., :1, :]).square().mean().sqrt())


def _known(rotary: nn.Module) -> list[Way]:
    """Ways of turning: half against half, then as the model's own code does, of whole keys or of
    as many of their numbers as there are angles."""
    own = getattr(sys.modules[type(rotary).__module__], "apply_rotary_pos_emb", None)
    if own is None:
        return [_of_first(rotary, _halves)]

    def as_written(keys: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        turned: Tensor = own(keys, keys, cosine, sine)[1]
        return turned

    def of_whole(keys: Tensor, place: Tensor) -> Tensor:
        return as_written(keys, *rotary(keys, place[None]))

    return [_of_first(rotary, _halves), of_whole, _of_first(rotary, as_written)]


def _halves(keys: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    half = keys.shape[-1] // 2
    turned = torch.cat([-keys[..., half:], keys[..., :half]], dim=-1)
    return keys * cosine + turned * sine


def _of_first(rotary: nn.Module, turn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Way:
    """``turn`` of as many numbers of a key as there are angles; the others stay."""

    def rotate(keys: Tensor, place: Tensor) -> Tensor:
        cosine, sine = rotary(keys, place[None])  # [1, length, turned numbers]
        size = cosine.shape[-1]
        if size == keys.shape[-1]:
            return turn(keys, cosine, sine)
        return torch.cat([turn(keys[..., :size], cosine, sine), keys[..., size:]], dim=-1)

    return rotate
