"""What a decoder says after each text, computed once and looked up from then on."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from latentwire.data.example import Example
from latentwire.decoders.teacher import Form, Kept
from latentwire.decoders.teacher_shards import Layout, Shard

_Place = tuple[Shard, int, int]
"""A prompt's rows: of which shard, from and to."""


class TeacherCache:
    """The distributions of one decoder that are known, by prompt and by example.

    Args:
        folder: where its shards are.
        layout: of them.
        device: what ``find`` finds is brought there.
    """

    def __init__(self, folder: Path, layout: Layout, *, device: torch.device) -> None:
        self.folder = folder
        self.layout = layout
        self.num_live = 0
        """Examples that were asked for, were not there, and were read by the decoder instead."""
        self._device = device
        self._shards: dict[str, Shard] = {}
        self._prompts: dict[bytes, _Place] = {}
        self._examples: dict[Example, _Place] = {}

    @property
    def form(self) -> Form:
        return self.layout.form

    @property
    def num_bytes(self) -> int:
        """Of all shards."""
        return sum(shard.num_bytes for shard in self._shards.values())

    @property
    def num_rows(self) -> int:
        """Answer tokens of all shards."""
        return sum(shard.first[-1] for shard in self._shards.values())

    def add(self, shard: Shard) -> None:
        """Takes in what a shard holds; of a prompt that is there twice the first stays."""
        self._shards[shard.path.name] = shard
        for number, prompt in enumerate(shard.prompts):
            place = (shard, shard.first[number], shard.first[number + 1])
            self._prompts.setdefault(prompt, place)

    def __contains__(self, prompt: bytes) -> bool:
        return prompt in self._prompts

    def __len__(self) -> int:
        return len(self._prompts)

    def remember(self, examples: Iterable[tuple[Example, bytes]]) -> None:
        """Which prompts belong to which examples, so that no text is tokenized to be looked up."""
        places = self._prompts
        self._examples |= {example: places[p] for example, p in examples if p in places}

    def find(self, examples: Sequence[Example]) -> Kept | None:
        """``gather``, brought to the device."""
        kept = self.gather(examples)
        return None if kept is None else kept.to(self._device)

    def gather(self, examples: Sequence[Example]) -> Kept | None:
        """The distributions at every answer token of the examples, in order, on the host, pinned
        where a GPU will have them; None where one of the examples is not known."""
        places = [self._examples.get(example) for example in examples]
        known = [place for place in places if place is not None]
        if len(known) < len(places):
            return None
        kept = Kept.joined([shard.kept.rows(slice(first, last)) for shard, first, last in known])
        return kept.pinned() if self._device.type == "cuda" else kept
