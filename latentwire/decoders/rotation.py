"""How a decoder turns its keys by their position: found among known ways by trying them.

Models differ in it: one half of a key against the other, neighbours against each other, part of a
key only. A way is taken for the decoder's if it brings the keys of one token, repeated, to rest.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)

Rotation = Callable[[Tensor, Tensor], Tensor]
"""(keys [..., length, head_dim], positions [length]) -> the keys as they stand in the cache."""

_AT_REST = 0.1
"""Of the keys' size: what may be left of the differences between positions, as rounding leaves in
half precision. A wrong way leaves several times as much."""


def rotary_of(model: nn.Module) -> nn.Module | None:
    """The module that gives angles for positions; None where there is none, or several."""
    modules = [m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")]
    return modules[0] if len(modules) == 1 else None


def rotation_of(name: str, rotary: nn.Module, keys: Sequence[Tensor]) -> Rotation | None:
    """How the decoder ``name`` turns keys; None where no known way is its own, which is logged.

    Args:
        keys: of each layer [1, heads, length, head_dim], as one token repeated has them in the
            cache. Its states are then the same at every position, as attention to equal values
            gives their value, and so are its keys before they are turned.
    """
    place = torch.arange(keys[0].shape[-2], device=keys[0].device)
    for rotate in _known(rotary):
        try:
            resting = [rotate(part, -place).float() for part in keys]
        except (TypeError, RuntimeError, AttributeError, KeyError):
            continue  # not made for such keys
        if all(_is_at_rest(part) for part in resting):
            return rotate
    _log.warning(
        "decoders.%s: how its keys are turned by position is not known; what a deep prefix adds to "
        "keys is not turned along, and keys are compared as they stand",
        name,
    )
    return None


def _is_at_rest(keys: Tensor) -> bool:
    apart = (keys - keys[..., :1, :]).square().mean().sqrt()
    return bool(apart <= _AT_REST * keys.square().mean().sqrt())


def _known(rotary: nn.Module) -> Iterator[Rotation]:
    """Ways of turning: half against half, then as the model's own code does, of whole keys or of
    as many of their numbers as there are angles."""
    yield _of_first(rotary, _halves)
    own = getattr(sys.modules[type(rotary).__module__], "apply_rotary_pos_emb", None)
    if own is not None:

        def as_written(keys: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
            turned: Tensor = own(keys, keys, cosine, sine)[1]
            return turned

        yield lambda keys, place: as_written(keys, *rotary(keys, place[None]))
        yield _of_first(rotary, as_written)


def _halves(keys: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    half = keys.shape[-1] // 2
    turned = torch.cat([-keys[..., half:], keys[..., :half]], dim=-1)
    return keys * cosine + turned * sine


def _of_first(rotary: nn.Module, turn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Rotation:
    """``turn`` of as many numbers of a key as there are angles; the others stay."""

    def rotate(keys: Tensor, place: Tensor) -> Tensor:
        cosine, sine = rotary(keys, place[None])  # [1, length, turned numbers]
        size = cosine.shape[-1]
        if size == keys.shape[-1]:
            return turn(keys, cosine, sine)
        return torch.cat([turn(keys[..., :size], cosine, sine), keys[..., size:]], dim=-1)

    return rotate
