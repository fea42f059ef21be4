"""The arms of an evaluation: ways of prompting one decoder with the same question."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
    ratio: int | None = None
    """Of the wire whose positions count; None is the configuration's own."""


@dataclass(frozen=True, kw_only=True)
class WireArm:
    """The decoder reads a wire: its own example's, or another one as a control."""

    name: str
    wrong: bool = False
    """Read the wire of a different document."""
    change: Callable[[Tensor], Tensor] | None = None
    """Applied to the latents."""
    is_alike: bool = False
    """What is changed says the same of every text that has as many latents."""
    ratio: int | None = None
    """Encoder tokens per latent; None is the configuration's own."""

    @property
    def carries(self) -> bool:
        """Whether it is the example's own wire, as it is."""
        return not self.wrong and self.change is None


Arm = TextArm | WireArm

LATENT = WireArm(name="latent")
"""The wire as it is trained."""

_TRUNCATED = TextArm(
    name="truncated_text",
    prompt=lambda prompts, example, positions: prompts.truncated(example, positions),
)
_WRONG = WireArm(name="wrong_wire", wrong=True)
_ZERO = WireArm(name="zero_wire", change=zero, is_alike=True)

ARMS: tuple[Arm, ...] = (
    TextArm(name="text", prompt=lambda prompts, example, _: prompts.text(example)),
    LATENT,
    TextArm(
        name="no_context", prompt=lambda prompts, example, _: prompts.text(example, context="")
    ),
    _TRUNCATED,
    _WRONG,
    _ZERO,
)
_OF_RATIO = (LATENT, _TRUNCATED, _WRONG, _ZERO)
OF_RATIO = frozenset(arm.name for arm in _OF_RATIO)
"""The arms that depend on the wire's ratio."""


def arms_of(ratios: Sequence[int]) -> tuple[Arm, ...]:
    """All arms, and the wire with its controls at further ratios, as ``latent@<ratio>``."""
    further = (
        replace(arm, name=at_ratio(arm.name, ratio), ratio=ratio)
        for ratio in ratios
        for arm in _OF_RATIO
    )
    return (*ARMS, *further)


def at_ratio(name: str, ratio: int) -> str:
    """The name of an arm at a further ratio."""
    return f"{name}@{ratio}"


def ratio_of(name: str) -> int | None:
    """The further ratio in an arm's name; None where it is the configuration's own, or none."""
    _, _, ratio = name.partition("@")
    return int(ratio) if ratio else None


def names(arms: Sequence[Arm] = ARMS) -> list[str]:
    """The arms' names, in the order of tables."""
    return [arm.name for arm in arms]
