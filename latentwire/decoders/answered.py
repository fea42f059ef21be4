"""What a decoder has read, and what it says: contexts to go on from, and answers."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from latentwire.decoders.head import Head
from latentwire.wire.lora import Updates


@dataclass(kw_only=True)
class Context:
    """What a decoder has read of each example so far: keys, values and their mask."""

    cache: Any
    mask: Tensor
    """[rows, positions]: True at positions that may be attended to."""
    lora: Updates
    """What the decoder's linear layers are updated with as it reads on."""
    prefixes: list[tuple[Tensor, Tensor]] | None = None
    """Where asked for: of each layer the keys and values of the prefixes, as ``at_rest``."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a decoder says at the supervised positions, in target order."""

    last: Tensor
    """[supervised, hidden]: the states that ``head`` makes logits of; without it the logits."""
    head: Head | None
    """None where the decoder's logits are made by the decoder only."""
    states: Tensor | None = None
    """[layers, supervised, hidden] of the layers that were asked for."""
    prefixes: list[tuple[Tensor, Tensor]] | None = None
    """Where asked for: of each layer keys and values [prefixes, length, kv_heads * head_dim]."""

    @property
    def vocabulary(self) -> int:
        """Logits of a position."""
        return self.last.shape[-1] if self.head is None else self.head.vocabulary

    @property
    def logits(self) -> Tensor:
        """All of them at once, [supervised, vocabulary]; made whenever it is asked."""
        return self.logits_of(slice(0, len(self.last)))

    def logits_of(self, rows: slice) -> Tensor:
        """Those of some of the positions."""
        last = self.last[rows]
        return last if self.head is None else self.head(last)
