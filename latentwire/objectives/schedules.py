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


def progress(step: int, *, steps: int) -> float:
    """0 at the first of ``steps`` steps, 1 at the last and after it.

    A single step is the first, so that it does what a schedule starts with.
    """
    return min(1.0, (step - 1) / max(1, steps - 1))


def linear(step: int, *, steps: int, start: float, end: float, power: float = 1.0) -> float:
    """From ``start`` at the first step to ``end`` at the last, along progress ** ``power``."""
    return start + (end - start) * progress(step, steps=steps) ** power


def geometric(step: int, *, steps: int, start: float, end: float) -> float:
    """From ``start`` at the first step to ``end`` at the last, by equal factors."""
    return float(start * (end / start) ** progress(step, steps=steps))


def first_weight(step: int, *, steps: int, peak: float, hold: float, base: float) -> float:
    """Weight of ``first``: ``peak`` for the first ``hold`` of the steps, then a cosine to ``base``.

    Args:
        hold: between 0 and 1; at 1 the peak is held to the end.
    """
    done = progress(step, steps=steps)
    if done <= hold:
        return peak
    return base + (peak - base) * 0.5 * (1 + math.cos(math.pi * (done - hold) / (1 - hold)))


def k_at(step: int, *, steps: int, start: int, end: int) -> int:
    """How many answer tokens ``kce`` covers: linear, to the nearest integer, at least 1."""
    return max(1, math.floor(linear(step, steps=steps, start=start, end=end) + 0.5))
