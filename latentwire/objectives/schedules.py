"""Schedules: pure functions of the step, counted from 1."""

import math


def learning_rate(step: int, *, steps: int, warmup: int, floor: float) -> float:
    """Multiplier of the peak: linear warm-up, then a cosine down to ``floor``."""
    if step <= warmup:
        return step / max(1, warmup)
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def encoder_learning_rate(step: int, *, steps: int, warmup: int, floor: float, start: int) -> float:
    """As ``learning_rate``, but zero for the first ``start`` steps and warming up after them."""
    if step <= start:
        return 0.0
    rising = min(1.0, (step - start) / max(1, warmup))
    return rising * learning_rate(step, steps=steps, warmup=0, floor=floor)


def linear(step: int, *, steps: int, start: float, end: float, power: float = 1.0) -> float:
    """From ``start`` at step 1 to ``end`` after ``steps``, along (step / steps) ** power."""
    return start + (end - start) * min(1.0, (step - 1) / max(1, steps)) ** power


def geometric(step: int, *, steps: int, start: float, end: float) -> float:
    """From ``start`` at the first step to ``end`` at the last, by equal factors."""
    progress = (step - 1) / max(1, steps - 1)
    return float(start * (end / start) ** progress)
