"""Automatic weights: every objective's share of the gradient is its weight's share.

Objectives of equal weight can differ by orders in their gradients, and so in what they train.
As in GradNorm (arXiv 1711.02257) the gradients' norms at a shared place are brought to wanted
proportions; here the proportions are the configured weights, there is no term for training speed,
and the multipliers are solved for and not learned. Plain floats, the same on every rank that is
given the same norms.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

LIMIT = 10.0
"""A multiplier is at most this and at least its inverse."""
KEEP = 0.5
"""Part of the old multiplier, of its logarithm, in the average after a measurement."""


def balanced(weights: Mapping[str, float], squares: Mapping[str, float]) -> dict[str, float]:
    """Multipliers m of the weights w such that each m w g is proportional to w.

    g are the norms of the objectives' own gradients, before weighting. m = c / g, with c chosen
    so that the sum of m w g is the sum of w g: the proportions change, the size does not (but for
    multipliers that reach ``LIMIT``).

    Args:
        weights: the configured ones; an objective without weight is not balanced.
        squares: g^2 by objective.

    Returns:
        Of the objectives whose weight is positive and whose gradient is neither zero nor
        infinite; there is nothing to say of the others, and they have no part in c.
    """
    norms = {
        name: math.sqrt(square)
        for name, square in squares.items()
        if weights.get(name, 0.0) > 0 and 0 < square < math.inf
    }
    if not norms:
        return {}
    # Exactly rounded sums do not depend on the order of the objectives.
    size = math.fsum(weights[name] * norm for name, norm in norms.items())
    level = size / math.fsum(weights[name] for name in norms)
    return {name: min(max(level / norm, 1 / LIMIT), LIMIT) for name, norm in norms.items()}


@dataclass(frozen=True, kw_only=True)
class Balance:
    """The multipliers in use, an exponential average over measurements."""

    multipliers: Mapping[str, float] = field(default_factory=dict)
    """By objective; one that was never measured has none and keeps its weight."""

    def updated(self, weights: Mapping[str, float], squares: Mapping[str, float]) -> "Balance":
        """After a measurement, whose arguments are those of ``balanced``.

        An objective's first measurement counts in full; one without a usable gradient this time
        keeps its multiplier.
        """
        found = dict(self.multipliers)
        for name, new in balanced(weights, squares).items():
            found[name] = found[name] ** KEEP * new ** (1 - KEEP) if name in found else new
        return Balance(multipliers=found)

    def applied(self, weights: Mapping[str, float]) -> dict[str, float]:
        """The weights to train with, of all of ``weights``."""
        return {name: self.multipliers.get(name, 1.0) * weight for name, weight in weights.items()}

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps, plain JSON: the multipliers."""
        return dict(self.multipliers)

    @classmethod
    def from_state(cls, state: Mapping[str, float]) -> "Balance":
        """The balance that ``state`` was taken of."""
        return cls(multipliers=dict(state))
