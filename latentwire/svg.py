"""Small plots as SVG, drawn by hand: no dependency, readable on light and on dark."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 76, 56
_LEGEND_ROW = 18
_LIGHT = {"ink": "#1f2328", "faint": "#d0d7de", "ground": "#ffffff"}
_DARK = {"ink": "#e6edf3", "faint": "#3d444d", "ground": "#0d1117"}
_COLOURS = (  # of the series, on light and on dark
    ("#0969da", "#58a6ff"),
    ("#bc4c00", "#f0883e"),
    ("#1a7f37", "#56d364"),
    ("#8250df", "#bc8cff"),
    ("#bf3989", "#f778ba"),
    ("#9a6700", "#d29922"),
    ("#1b7c83", "#39c5cf"),
    ("#57606a", "#8b949e"),
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
    """Round numbers from at or below ``low`` to at or above ``high``, about ``about`` of them.

    Where both are one, an axis from there, of a length that shows it.
    """
    if high <= low:
        high = low + (abs(low) or 1.0)
    span = max(high - low, 1e-9)
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]


def _doublings(low: float, high: float) -> list[float]:
    """Powers of two from at or below ``low`` to at or above ``high``, at least two of them."""
    first = math.floor(math.log2(low))
    last = max(math.ceil(math.log2(high)), first + 1)
    return [2.0**power for power in range(first, last + 1)]


@dataclass(frozen=True, kw_only=True)
class _Axes:
    """A rectangle of the picture and the values it shows."""

    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    height: int = _HEIGHT
    left: int = _LEFT
    top: int = _TOP
    log_x: bool = False
    """Equal ratios of x are equally far apart."""

    def across(self, x: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        if self.log_x:
            low, high, x = math.log(low), math.log(high), math.log(x)
        return self.left + (x - low) / (high - low) * (_WIDTH - self.left - _RIGHT)

    def up(self, y: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        bottom = self.height - _BOTTOM
        return bottom - (y - low) / (high - low) * (bottom - self.top)

    def drawn(self, *, title: str, x_name: str, y_name: str) -> list[str]:
        """The ground, the title, the grid and the names of both axes."""
        right, bottom = _WIDTH - _RIGHT, self.height - _BOTTOM
        body = [f'<rect class="ground" width="{_WIDTH}" height="{self.height}"/>']
        body.append(_text(_LEFT, 24, title, kind="title"))
        for y in self.y_ticks:
            body.append(_line(self.left, self.up(y), right, self.up(y), kind="grid"))
            body.append(_text(self.left - 8, self.up(y) + 4, f"{y:g}", anchor="end"))
        for x in self.x_ticks:
            body.append(_line(self.across(x), bottom, self.across(x), bottom + 5, kind="axis"))
            body.append(_text(self.across(x), bottom + 20, f"{x:g}", anchor="middle"))
        body.append(_line(self.left, bottom, right, bottom, kind="axis"))
        body.append(_text((self.left + right) / 2, self.height - 12, x_name, anchor="middle"))
        middle = (bottom + self.top) / 2
        body.append(
            f'<text transform="translate(18 {middle:.1f}) rotate(-90)" text-anchor="middle">'
            f"{escape(y_name)}</text>"
        )
        return body


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
    legend, more = _legend(list(series), line_name if lines else "")
    axes = _Axes(
        x_ticks=x_ticks,
        y_ticks=[0, 0.2, 0.4, 0.6, 0.8, 1],
        height=_HEIGHT + more,
        top=_TOP + more,
    )
    body = axes.drawn(title=title, x_name=x_name, y_name=y_name) + legend
    for index, (name, marks) in enumerate(series.items()):
        colour = f"c{index % len(_COLOURS)}"
        if name in lines:
            y = axes.up(lines[name].y)
            body.append(
                f'<line class="reference {colour}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" '
                f'y1="{y:.1f}" y2="{y:.1f}"><title>{escape(name)}, {escape(line_name)}: '
                f"{lines[name].y:.3f}</title></line>"
            )
        for mark in marks:
            x, y = axes.across(mark.x), axes.up(mark.y)
            body.append(
                f'<g class="{colour}"><title>{escape(mark.title)}</title>'
                f'<line x1="{x:.1f}" x2="{x:.1f}" '
                f'y1="{axes.up(mark.low):.1f}" y2="{axes.up(mark.high):.1f}"/>'
                f"{_shape(index, x, y)}</g>"
            )
            # The numbers of two series stand on two sides, so that close pairs stay readable.
            side, anchor = (8, "start") if index % 2 == 0 else (-8, "end")
            body.append(_text(x + side, y + 4, mark.label, anchor=anchor, kind="number"))
    return _picture(title, body, height=axes.height)


def curves(
    *,
    title: str,
    x_name: str,
    y_name: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    log_x: bool = False,
) -> str:
    """Lines through (x, y) by name, with y from 0 to 1.

    Args:
        log_x: x on a logarithmic scale, which ends with the points, each of them marked; else x
            from 0, and the last one marked.
    """
    xs = [x for points in series.values() for x, _ in points] or [1.0]
    legend, more = _legend(list(series), "")
    axes = _Axes(
        x_ticks=_doublings(min(xs), max(xs)) if log_x else ticks(0.0, max(xs)),
        y_ticks=[0, 0.2, 0.4, 0.6, 0.8, 1],
        height=_HEIGHT + more,
        top=_TOP + more,
        log_x=log_x,
    )
    body = axes.drawn(title=title, x_name=x_name, y_name=y_name) + legend
    for index, (name, points) in enumerate(series.items()):
        path = " ".join(f"{axes.across(x):.1f},{axes.up(y):.1f}" for x, y in points)
        shown = points if log_x else points[-1:]
        marks = "".join(_shape(index, axes.across(x), axes.up(y)) for x, y in shown)
        body.append(
            f'<g class="c{index % len(_COLOURS)}"><title>{escape(name)}</title>'
            f'<polyline class="curve" points="{path}"/>{marks}</g>'
        )
    return _picture(title, body, height=axes.height)


def forest(*, title: str, x_name: str, marks: Sequence[Mark]) -> str:
    """Marks with their intervals along x, one line each from the top, beside a line at 0.

    Args:
        marks: ``x``, ``low`` and ``high`` are shown; ``y`` is not.
    """
    values = [value for mark in marks for value in (mark.low, mark.high)] or [0.0]
    height = _TOP + 22 * max(1, len(marks)) + _BOTTOM
    x_ticks = ticks(min(0.0, *values), max(0.0, *values))
    axes = _Axes(x_ticks=x_ticks, y_ticks=[], height=height, left=210)
    body = axes.drawn(title=title, x_name=x_name, y_name="")
    zero, bottom = axes.across(0), height - _BOTTOM
    body.append(_line(zero, _TOP - 12, zero, bottom, kind="axis"))
    for number, mark in enumerate(marks):
        y = _TOP + 22 * number
        better = 2 if mark.low > 0 else 1 if mark.high < 0 else 7
        body.append(_text(200, y + 4, mark.label, anchor="end"))
        body.append(
            f'<g class="c{better}"><title>{escape(mark.title)}</title><line '
            f'x1="{axes.across(mark.low):.1f}" x2="{axes.across(mark.high):.1f}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/>{_shape(0, axes.across(mark.x), y)}</g>'
        )
    return _picture(title, body, height=height)


def _picture(title: str, body: Sequence[str], *, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img" aria-label="{escape(title)}">\n'
        f"<style>{_style()}</style>\n" + "\n".join(body) + "\n</svg>\n"
    )


def _style() -> str:
    """Plain classes: not every viewer of SVG knows variables, and one without media queries shows
    the light one."""
    fixed = (
        "text { font: 12px system-ui, sans-serif; } .title { font-size: 15px; font-weight: 600; } "
        ".number { font-size: 11px; } .curve { fill: none; stroke-width: 1.8; } "
        ".reference { stroke-dasharray: 6 4; stroke-width: 1.5; }"
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


def _legend(names: Sequence[str], line_name: str) -> tuple[list[str], int]:
    """The names under the title, in as many rows as they need, and the height of further rows."""
    found, start, y = [], float(_LEFT) + 6, 48.0
    x = start
    for index, name in enumerate([*names, line_name] if line_name else names):
        width = 34 + 7 * len(name)
        if x > start and x + width > _WIDTH:
            x, y = start, y + _LEGEND_ROW
        if index < len(names):
            found.append(f'<g class="c{index % len(_COLOURS)}">{_shape(index, x, y)}</g>')
            found.append(_text(x + 10, y + 4, name))
        else:
            found.append(_line(x, y, x + 26, y, kind="axis reference"))
            found.append(_text(x + 32, y + 4, name))
        x += width
    return found, int(y - 48)


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
