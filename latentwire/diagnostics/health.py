"""What the gauges mean: a state for each decoder's wire, with the reasons."""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

State = Literal["warming", "alive", "collapsed", "exploding"]

_ALIVE_NATS = 0.05
"""A wire whose right text is better than a wrong one by so much a token carries something."""
_SAME_NATS = 1e-6
_LOST_SHARE = 0.1
"""A wire that has lost all but this of its best margin has collapsed."""
_UPDATE = 0.3
"""A step that moves a part by so much of its weights' size tears it apart."""
_GROWTH, _GROWTH_STEPS = 4.0, 200
"""Weights that grow by more in so many steps run away; slower growth, as of what starts near zero,
is learning."""
_RMS = 30.0
"""Times the embeddings' size, up from where the wire began, and down."""
_TEACHER = 0.5
"""Of the logarithm of the vocabulary's size: a text teacher that predicts the targets no better
than this does not know them."""
_ALIKE = 0.999
_RANK = 1.2
_FAR_WORSE = 3.0
"""Nats a token beyond both the first reading and chance."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How one decoder's wire is."""

    state: State
    reasons: tuple[str, ...]
    """Why it is not alive, or what it is warming up to; empty where it is alive."""


@dataclass(kw_only=True)
class _Past:
    best: float = 0.0
    """Largest margin of the right text over a wrong one."""
    first: dict[str, float] = field(default_factory=dict)


class Health:
    """Judges each decoder's gauges in the light of its earlier ones.

    Args:
        warmup: steps that a wire may take before it must read better than a wrong one.
        past: of an earlier process of the run, as ``past`` gave it.
    """

    def __init__(self, *, warmup: int, past: Mapping[str, Any] | None = None) -> None:
        self._warmup = warmup
        self._past = {decoder: _Past(**each) for decoder, each in (past or {}).items()}

    def past(self) -> dict[str, Any]:
        """What later verdicts need of the gauges so far, by decoder, as JSON holds it."""
        return {decoder: asdict(each) for decoder, each in self._past.items()}

    def judge(
        self,
        decoder: str,
        gauges: Mapping[str, Any],
        *,
        steps: int,
        unreached: Collection[str] = (),
    ) -> Verdict:
        """The state of a decoder's wire.

        Args:
            gauges: what ``gauges.measure`` found for it.
            steps: that the run has trained, all stages together.
            unreached: trained parts whose gradient was zero in the step.
        """
        past = self._past.setdefault(decoder, _Past())
        of_first = {k: gauges[k] for k in ("nll_right", "wire_rms_ratio")}
        past.first = past.first or {k: float(v) for k, v in of_first.items() if v is not None}
        margin = -float(gauges["right_minus_wrong"])
        if exploding := _exploding(gauges, past, steps):
            return Verdict(state="exploding", reasons=tuple(exploding))
        collapsed = _broken(gauges, unreached)
        is_warm = steps >= self._warmup
        if past.best < _ALIVE_NATS and is_warm and margin < _ALIVE_NATS:
            collapsed.append(
                f"after {steps} steps the right text's wire is better than another text's by "
                f"{margin:.4f} nats a token, which is nothing"
            )
        if past.best >= _ALIVE_NATS and margin < _LOST_SHARE * past.best:
            collapsed.append(
                f"the right text's wire is better than another text's by {margin:.4f} nats a "
                f"token, and was by {past.best:.4f}"
            )
        past.best = max(past.best, margin)
        if is_warm:
            collapsed += _alike(gauges)
        if collapsed:
            return Verdict(state="collapsed", reasons=tuple(collapsed))
        if past.best < _ALIVE_NATS:
            reason = f"it has until step {self._warmup} to read better than a wrong one"
            return Verdict(state="warming", reasons=(reason,))
        return Verdict(state="alive", reasons=())


def _exploding(gauges: Mapping[str, Any], past: _Past, steps: int) -> list[str]:
    found = [
        f"{key} is not finite"
        for key, value in sorted(gauges.items())
        if isinstance(value, float) and not math.isfinite(value)
    ]
    for key, value in sorted(gauges.items()):
        if key.startswith("update_ratio/") and value > _UPDATE:
            part = key.removeprefix("update_ratio/")
            found.append(
                f"one step moves the {part} by {value:.2f} of its weights' size; lower its "
                "learning rate"
            )
        if key.startswith("weight_growth/") and value > _GROWTH * max(1, steps / _GROWTH_STEPS):
            part = key.removeprefix("weight_growth/")
            found.append(
                f"the {part}'s weights are {value:.1f} times as large as at the start; lower its "
                "learning rate"
            )
    loss, first = gauges["nll_right"], past.first["nll_right"]
    if loss > max(first, gauges["chance_nll"]) + _FAR_WORSE:
        found.append(f"the loss on held-out examples is {loss:.2f}, and was {first:.2f} at first")
    ratio, start = gauges["wire_rms_ratio"], max(1.0, past.first.get("wire_rms_ratio", 0.0))
    if ratio is not None and ratio > _RMS * start:
        found.append(f"the soft prompt is {ratio:.1f} times as large as input embeddings are")
    return found


def _broken(gauges: Mapping[str, Any], unreached: Collection[str]) -> list[str]:
    """What is wrong at any age of the wire."""
    found = []
    limit = _TEACHER * gauges["chance_nll"]
    if gauges["teacher_nll"] > limit:
        found.append(
            f"the text teacher's own loss on the training targets is {gauges['teacher_nll']:.2f} "
            f"nats a token (chance is {gauges['chance_nll']:.2f}): the labels are broken, or the "
            "decoder cannot read these texts"
        )
    if abs(gauges["right_minus_wrong"]) < _SAME_NATS:
        found.append("another text's wire reads exactly the same: nothing gets through")
    found += [
        f"the {part} does not learn: no gradient reaches it"
        for part in sorted(unreached)
        if f"update_ratio/{part}" in gauges
    ]
    return found


def _alike(gauges: Mapping[str, Any]) -> list[str]:
    found = []
    if gauges["wire_cosine"] > _ALIKE or gauges["wire_rank"] < _RANK:
        found.append(
            f"all latents are alike: mean cosine {gauges['wire_cosine']:.4f}, effective rank "
            f"{gauges['wire_rank']:.2f}"
        )
    return found
