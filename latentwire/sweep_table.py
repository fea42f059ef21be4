"""A sweep's comparison: one table as Markdown and CSV, and the plot of its exact match."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentwire.diagnostics.run_files import read_metrics
from latentwire.files import publish
from latentwire.svg import Line, Mark, plot
from latentwire.training.status import read_status

_COLUMNS = (
    "state decoder compression em em_low em_high f1 first_acc nll_per_token text_em wrong_wire_em"
).split()
_NONE = "-"
_UNREAD = "finished, no metrics"
"""State of a point whose metrics cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One point: its place in the sweep and what it measured."""

    name: str
    values: tuple[str, ...]
    """Of the swept keys."""
    state: str
    metrics: dict[str, Any] | None
    """Of Stage C; None as long as the point has not finished."""


def row_of(name: str, values: Sequence[str], folder: Path) -> Row:
    """A point as its run's folder has it."""
    state = str(read_status(folder).get("state", "not started"))
    row = Row(name=name, values=tuple(values), state=state, metrics=None)
    if state != "finished":
        return row
    full = replace(row, metrics=read_metrics(folder))
    try:
        # One point's damaged or foreign file takes no other point its table.
        _ = _cells(0, full), picture("", [full])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError):
        return replace(row, state=_UNREAD)
    return full


def write_tables(folder: Path, tag: str, axes: Sequence[str], rows: Sequence[Row]) -> str:
    """Writes ``sweep.md``, ``sweep.csv`` and ``sweep.svg``, each replaced as a whole.

    They depend on the points' metrics alone, so a sweep that was interrupted and went on leaves
    the files of one that was not.

    Returns:
        The Markdown table.
    """
    header = ["#", *axes, *_COLUMNS]
    cells = [line for number, row in enumerate(rows, start=1) for line in _cells(number, row)]
    table = markdown(header, cells)
    text = f"# Sweep {tag}\n\n{table}\n\n![exact match against compression](sweep.svg)\n"
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "sweep.md", text)
    _replace(folder / "sweep.csv", _csv(header, cells))
    _replace(folder / "sweep.svg", picture(tag, rows))
    return table


def _cells(number: int, row: Row) -> list[list[str]]:
    """One line for each decoder, or one without measurements."""
    start = [str(number), *row.values, row.state]
    if row.metrics is None:
        return [start + [_NONE] * (len(_COLUMNS) - 1)]
    lines = []
    for name, decoder in row.metrics["decoders"].items():
        arms = decoder["arms"]
        latent = arms["latent"]
        numbers = [
            *(latent["em"], *latent["em_ci95"], latent["f1"], latent["first_acc"]),
            *(latent["nll_per_token"], arms["text"]["em"], arms["wrong_wire"]["em"]),
        ]
        compression = _number(decoder["compression_tokens"], 2)
        lines.append([*start, name, compression, *(_number(value, 3) for value in numbers)])
    return lines


def _number(value: float | None, digits: int) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def markdown(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are also aligned as plain text."""
    widths = [max(len(line[i]) for line in (header, *cells)) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *cells]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def _csv(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if cell == _NONE else cell for cell in line] for line in cells])
    return out.getvalue()


def picture(tag: str, rows: Sequence[Row]) -> str:
    """EM of every point against its compression, numbered as in the table; the text's as lines."""
    marks: dict[str, list[Mark]] = {}
    text: dict[str, list[float]] = {}
    for number, row in enumerate(rows, start=1):
        for name, decoder in (row.metrics or {"decoders": {}})["decoders"].items():
            if decoder["compression_tokens"] is None:
                continue
            latent = decoder["arms"]["latent"]
            marks.setdefault(name, []).append(
                Mark(
                    x=decoder["compression_tokens"],
                    y=latent["em"],
                    low=latent["em_ci95"][0],
                    high=latent["em_ci95"][1],
                    label=str(number),
                    title=f"{row.name}, {name}: EM {latent['em']:.3f} at "
                    f"{decoder['compression_tokens']:.2f}x",
                )
            )
            text.setdefault(name, []).append(decoder["arms"]["text"]["em"])
    # Every point reads the same text with the same decoder; with other examples they may differ.
    lines = {name: Line(y=sum(values) / len(values)) for name, values in text.items()}
    return plot(
        title=f"{tag}: exact match against compression",
        x_name="compression in tokens (x)",
        y_name="exact match",
        series=marks,
        lines=lines,
        line_name="reading the text",
    )


def _replace(path: Path, text: str) -> None:
    # Points of an array may end at the same time, on several machines.
    publish(path, text.encode(), durably=False)
