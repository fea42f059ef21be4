"""How much of what is read is padding: counted on the host, from lengths that it knows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from latentwire.data.batch import PromptBatch
from latentwire.data.encoder_texts import EncoderTexts

ENCODER, PREFIX, SUFFIX = "encoder", "prefix", "suffix"


@dataclass(frozen=True, kw_only=True)
class Padding:
    """Positions that are read, and those of them that stand for something, by what reads them.

    Keys are (reader, part): the encoder's texts under its own name, a decoder's prefixes and
    suffixes under the decoder's.
    """

    positions: Mapping[tuple[str, str], int] = field(default_factory=dict)
    real: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def __add__(self, other: "Padding") -> "Padding":
        return Padding(
            positions=Counter(self.positions) + Counter(other.positions),
            real=Counter(self.real) + Counter(other.real),
        )

    def shares(self) -> dict[tuple[str, str], float]:
        """The share of positions that are padding, by reader and part."""
        return {key: 1 - self.real.get(key, 0) / number for key, number in self.positions.items()}

    def fields(self, decoder: str) -> dict[str, float]:
        """As a diagnostics row of ``decoder`` has them."""
        return {
            f"padding_{part}": round(share, 4)
            for (reader, part), share in self.shares().items()
            if reader in (ENCODER, decoder)
        }

    def tree(self) -> list[list[Any]]:
        """As JSON holds it; ``from_tree`` takes it back."""
        return [[*key, number, self.real.get(key, 0)] for key, number in self.positions.items()]

    @classmethod
    def from_tree(cls, tree: Sequence[Sequence[Any]]) -> "Padding":
        """What ``tree`` was taken of."""
        return cls(
            positions={(reader, part): number for reader, part, number, _ in tree},
            real={(reader, part): real for reader, part, _, real in tree},
        )

    def summary(self) -> str:
        """Every share, for a person."""
        shares = self.shares().items()
        return ", ".join(
            f"{' '.join(dict.fromkeys(key))} {100 * share:.1f} %" for key, share in shares
        )


def of_texts(texts: EncoderTexts, *, num_lead: int) -> Padding:
    """Of what the encoder reads; its leading tokens are real."""
    key = (ENCODER, ENCODER)
    real = int(texts.num_tokens.numpy().sum()) + num_lead * len(texts.ids)
    return Padding(positions={key: texts.ids.numel()}, real={key: real})


def of_prompts(decoder: str, prompt: PromptBatch) -> Padding:
    """Of what a decoder reads."""
    masks = {PREFIX: prompt.prefix_mask, SUFFIX: prompt.suffix_mask}
    return Padding(
        positions={(decoder, part): mask.numel() for part, mask in masks.items()},
        real={(decoder, part): _num_true(mask) for part, mask in masks.items()},
    )


def _num_true(mask: Tensor) -> int:
    return int(mask.numpy().sum())
