"""What a step draws for each text: how much stays text, at which ratio, which latents are kept.

Each is a function of (seed, stage, step) and the text alone, so every rank draws the same without
asking and no curve depends on the layout.
"""

import random
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class StepDraws:
    """The draws of one step; the defaults draw nothing."""

    seed: str = ""
    """Names the step."""
    text_share: float | None = None
    """Largest part of a text that stays text in a mixed step; None in a latent one."""
    ratios: tuple[int, ...] = ()
    """Ratios to train for; none given leaves each wire at its own."""
    ratio_mode: Literal["sampled", "summed"] = "sampled"
    """One of the ratios for each text, or all of them."""
    keep_prob: float = 1.0
    """Probability that a latent is kept."""

    def cut(self, text: str) -> int:
        """Where the wire's part of ``text`` ends, at a white space; all of it in a latent step."""
        if self.text_share is None:
            return len(text)
        rng = random.Random(f"{self.seed}/{text}")
        place = int(len(text) * rng.uniform(1 - self.text_share, 1.0))
        if place >= len(text):
            return len(text)
        space = text.rfind(" ", 0, place)
        return space if space > 0 else len(text)

    def ratios_of(self, text: str) -> tuple[int | None, ...]:
        """The ratios at which ``text`` is read; None is the wire's own."""
        if not self.ratios:
            return (None,)
        if self.ratio_mode == "summed":
            return self.ratios
        return (random.Random(f"{self.seed}/ratio/{text}").choice(self.ratios),)

    def keep(self, text: str, num_latents: int) -> tuple[bool, ...]:
        """Which latents of ``text`` are kept; never none of them."""
        if self.keep_prob >= 1:
            return (True,) * num_latents
        rng = random.Random(f"{self.seed}/keep/{num_latents}/{text}")
        kept = [rng.random() < self.keep_prob for _ in range(num_latents)]
        if num_latents and not any(kept):
            kept[rng.randrange(num_latents)] = True
        return tuple(kept)
