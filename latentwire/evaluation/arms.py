"""The arms of an evaluation: ways of prompting one decoder with the same question."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from latentwire.data.example import Example
from latentwire.data.prompts import DecoderPrompts, PromptTokens
from latentwire.wire.controls import zero

TextPrompt = Callable[[DecoderPrompts, Example, int], PromptTokens]
"""(prompts, example, positions of its wire) -> what the decoder reads."""


@dataclass(frozen=True, kw_only=True)
class TextArm:
    """The decoder reads tokens."""

    name: str
    prompt: TextPrompt


@dataclass(frozen=True, kw_only=True)
class WireArm:
    """The decoder reads a wire: its own example's, or another one as a control."""

    name: str
    wrong: bool = False
    """Read the wire of a different document."""
    change: Callable[[Tensor], Tensor] | None = None
    """Applied to the latents."""
    ratio: int | None = None
    """Encoder tokens per latent; None is the configuration's own."""

    @property
    def carries(self) -> bool:
        """Whether it is the example's own wire, as it is."""
        return not self.wrong and self.change is None


Arm = TextArm | WireArm

LATENT = WireArm(name="latent")
"""The wire as it is trained."""

ARMS: tuple[Arm, ...] = (
    TextArm(name="text", prompt=lambda prompts, example, _: prompts.text(example)),
    LATENT,
    TextArm(
        name="no_context", prompt=lambda prompts, example, _: prompts.text(example, context="")
    ),
    TextArm(
        name="truncated_text",
        prompt=lambda prompts, example, positions: prompts.truncated(example, positions),
    ),
    WireArm(name="wrong_wire", wrong=True),
    WireArm(name="zero_wire", change=zero),
)


def arms_of(ratios: Sequence[int]) -> tuple[Arm, ...]:
    """All arms, and the wire at further ratios, as ``latent@<ratio>``."""
    return (*ARMS, *(WireArm(name=f"{LATENT.name}@{ratio}", ratio=ratio) for ratio in ratios))


def names(arms: Sequence[Arm] = ARMS) -> list[str]:
    """The arms' names, in the order of tables."""
    return [arm.name for arm in arms]
