"""A small scatter plot as SVG, drawn by hand: no dependency, readable on light and on dark."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 76, 56
_LIGHT = {"ink": "#1f2328", "faint": "#d0d7de", "ground": "#ffffff"}
_DARK = {"ink": "#e6edf3", "faint": "#3d444d", "ground": "#0d1117"}
_COLOURS = (  # of the series, on light and on dark
    ("#0969da", "#58a6ff"),
    ("#bc4c00", "#f0883e"),
    ("#1a7f37", "#56d364"),
    ("#8250df", "#bc8cff"),
)
_SHAPES = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One point with its interval."""

    x: float
    y: float
    low: float
    high: float
    label: str
    title: str
    """Shown while the pointer is over it."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A horizontal reference line."""

    y: float


def ticks(low: float, high: float, *, about: int = 6) -> list[float]:
    """Round numbers from at or below ``low`` to at or above ``high``, about ``about`` of them."""
    span = max(high - low, 1e-9)
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]


def plot(
    *,
    title: str,
    x_name: str,
    y_name: str,
    series: Mapping[str, Sequence[Mark]],
    lines: Mapping[str, Line],
    line_name: str,
) -> str:
    """A scatter plot with y from 0 to 1.

    Args:
        series: marks by name; a name keeps its colour and shape.
        lines: a reference line for each name.
        line_name: what the reference lines are.
    """
    xs = [mark.x for marks in series.values() for mark in marks] or [0.0, 1.0]
    margin = 0.06 * (max(xs) - min(xs)) or 0.5
    x_ticks = ticks(max(0.0, min(xs) - margin), max(xs) + margin)
    y_ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    low, high = x_ticks[0], x_ticks[-1]

    def across(x: float) -> float:
        return _LEFT + (x - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        return _HEIGHT - _BOTTOM - y * (_HEIGHT - _TOP - _BOTTOM)

    body = [f'<rect class="ground" width="{_WIDTH}" height="{_HEIGHT}"/>']
    body.append(_text(_LEFT, 24, title, kind="title"))
    for y in y_ticks:
        body.append(_line(_LEFT, up(y), _WIDTH - _RIGHT, up(y), kind="grid"))
        body.append(_text(_LEFT - 8, up(y) + 4, f"{y:g}", anchor="end"))
    for x in x_ticks:
        body.append(_line(across(x), up(0), across(x), up(0) + 5, kind="axis"))
        body.append(_text(across(x), up(0) + 20, f"{x:g}", anchor="middle"))
    body.append(_line(_LEFT, up(0), _WIDTH - _RIGHT, up(0), kind="axis"))
    body.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, x_name, anchor="middle"))
    middle = (up(0) + up(1)) / 2
    body.append(
        f'<text transform="translate(18 {middle:.1f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_name)}</text>"
    )
    for index, (name, marks) in enumerate(series.items()):
        colour = f"c{index % len(_COLOURS)}"
        if name in lines:
            y = up(lines[name].y)
            body.append(
                f'<line class="reference {colour}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" '
                f'y1="{y:.1f}" y2="{y:.1f}"><title>{escape(name)}, {escape(line_name)}: '
                f"{lines[name].y:.3f}</title></line>"
            )
        for mark in marks:
            x, y = across(mark.x), up(mark.y)
            body.append(
                f'<g class="{colour}"><title>{escape(mark.title)}</title>'
                f'<line x1="{x:.1f}" x2="{x:.1f}" '
                f'y1="{up(mark.low):.1f}" y2="{up(mark.high):.1f}"/>'
                f"{_shape(index, x, y)}</g>"
            )
            # The numbers of two series stand on two sides, so that close pairs stay readable.
            side, anchor = (8, "start") if index % 2 == 0 else (-8, "end")
            body.append(_text(x + side, y + 4, mark.label, anchor=anchor, kind="number"))
    body += _legend(list(series), line_name if lines else "")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{escape(title)}">\n'
        f"<style>{_style()}</style>\n" + "\n".join(body) + "\n</svg>\n"
    )


def _style() -> str:
    """Plain classes: not every viewer of SVG knows variables, and one without media queries shows
    the light one."""
    fixed = (
        "text { font: 12px system-ui, sans-serif; } .title { font-size: 15px; font-weight: 600; } "
        ".number { font-size: 11px; } .reference { stroke-dasharray: 6 4; stroke-width: 1.5; }"
    )
    light, dark = (
        f"text {{ fill: {ink['ink']}; }} .ground {{ fill: {ink['ground']}; }} "
        f".grid {{ stroke: {ink['faint']}; }} .axis {{ stroke: {ink['ink']}; }} "
        + " ".join(
            f".c{index} {{ stroke: {pair[which]}; fill: {pair[which]}; }}"
            for index, pair in enumerate(_COLOURS)
        )
        for which, ink in enumerate((_LIGHT, _DARK))
    )
    return f"\n{fixed}\n{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n"


def _legend(names: Sequence[str], line_name: str) -> list[str]:
    found, x, y = [], float(_LEFT) + 6, 48.0
    for index, name in enumerate(names):
        found.append(f'<g class="c{index % len(_COLOURS)}">{_shape(index, x, y)}</g>')
        found.append(_text(x + 10, y + 4, name))
        x += 34 + 7 * len(name)
    if line_name:
        found.append(_line(x, y, x + 26, y, kind="axis reference"))
        found.append(_text(x + 32, y + 4, line_name))
    return found


def _shape(index: int, x: float, y: float) -> str:
    """Colour is not the only difference: each series has its own shape too."""
    shape = _SHAPES[index % len(_SHAPES)]
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    corners = {
        "square": ((-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)),
        "diamond": ((0, -5), (5, 0), (0, 5), (-5, 0)),
        "triangle": ((0, -5), (4.5, 4), (-4.5, 4)),
    }[shape]
    return f'<polygon points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, *, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
