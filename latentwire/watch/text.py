"""Numbers, times and curves as short text."""

import math
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN_BLOCKS = "_.-=+*#@"
"""Where the terminal has no block characters."""


def number(value: object) -> str:
    """At most seven characters; what is not finite is said, and what is no number is a dash."""
    if not isinstance(value, int | float):
        return "-"
    if not math.isfinite(value):
        return "not fin"
    if value != 0 and not 1e-3 <= abs(value) < 1e4:
        return f"{value:.1e}"
    digits = 3 if abs(value) < 100 else 1
    return f"{value:.{digits}f}"


def duration(seconds: float | None) -> str:
    """As 1:02:03, or 2:03."""
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def sparkline(
    values: Sequence[float], *, width: int, blocks: str = BLOCKS, is_log: bool = False
) -> str:
    """The last values, one character each; ``x`` where one is not finite.

    More values than characters share them out, each character the largest of its share.

    Args:
        is_log: heights by the logarithm; what is not above 0 is the lowest.
    """
    shares = _shares(values, width)
    heights = [_height(value, is_log=is_log) for value in shares]
    finite = [height for height in heights if math.isfinite(height)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    # What hardly moves is drawn flat: its last digits say nothing.
    still = 1e-3 if is_log else 1e-3 * max(abs(low), abs(high))
    span = high - low if high - low > still else 0.0
    line = ""
    for value, height in zip(shares, heights, strict=True):
        if not math.isfinite(value):
            line += "x"
        elif not math.isfinite(height):
            line += blocks[0]
        else:
            level = (height - low) / span if span > 0 else 0.5
            line += blocks[min(len(blocks) - 1, int(level * len(blocks)))]
    return line


def _shares(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        return list(values)
    found = []
    for index in range(width):
        start, stop = index * len(values) // width, (index + 1) * len(values) // width
        share = values[start:stop]
        bad = [value for value in share if not math.isfinite(value)]
        found.append(bad[0] if bad else max(share))
    return found


def _height(value: float, *, is_log: bool) -> float:
    if not is_log:
        return value
    return math.log10(value) if value > 0 else -math.inf
