"""A run as a picture of at least 80 columns, for a terminal."""

from collections.abc import Iterable
from statistics import median
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from latentwire.diagnostics.reading import reason_of
from latentwire.watch import lines
from latentwire.watch.folder import RunFolder
from latentwire.watch.model import Curve
from latentwire.watch.text import BLOCKS, PLAIN_BLOCKS, number, sparkline

_STATES = {
    **{"alive": "green", "finished": "green", "running": "cyan", "warming": "yellow"},
    **{"collapsed": "bold red", "exploding": "bold red", "failed": "bold red"},
}


def picture(
    run: RunFolder, *, width: int, plain: bool = False, every: bool = False
) -> RenderableType:
    """Everything about the run, one block below the other, what matters most at the top.

    Args:
        width: of the terminal, in characters.
        plain: draw curves without block characters.
        every: also show objectives that are only measured.
    """
    blocks = PLAIN_BLOCKS if plain else BLOCKS
    parts: list[RenderableType] = [_head(run), _stages(run)]
    parts += [Text(line, style="bold red") for line in lines.trouble(run)]
    parts += [Text(line) for line in lines.result_lines(run)]
    parts += [_rule("health", plain), _health(run)]
    if speed := _speed(run):
        parts += [_rule("seconds a step", plain), speed]
    if run.model.decoders:
        sizes: dict[str, Any] = {"width": width, "blocks": blocks, "every": every}
        parts += [_rule("losses", plain), _losses(run, **sizes)]
        parts += [_rule("gradient norms, logarithmic", plain), _norms(run, **sizes)]
    else:
        parts.append(Text("no rows yet", style="dim"))
    return Group(*parts)


def _rule(title: str, plain: bool) -> Rule:
    return Rule(title, align="left", style="dim", characters="-" if plain else "─")


def _head(run: RunFolder) -> Text:
    return Text(lines.head(run), style=_STATES.get(run.state, "bold"), overflow="fold")


def _stages(run: RunFolder) -> Table:
    table = _grid(right=(2, 3, 4))
    for stage in run.stages:
        total = "?" if stage.num_steps is None else str(stage.num_steps)
        pace = "" if stage.seconds_per_step is None else f"{stage.seconds_per_step:.2f} s/step"
        share = stage.share
        table.add_row(
            Text(f"stage {stage.name}"),
            ProgressBar(total=1.0, completed=share or 0.0, width=24, pulse=False),
            f"{stage.step}/{total}",
            pace,
            stage.left,
        )
    return table


def _losses(run: RunFolder, *, width: int, blocks: str, every: bool) -> Table:
    table = _grid(right=(2,))
    for decoder in run.model.decoders:
        found = lines.losses(run, decoder, every=every)
        _curves(table, decoder, found, width=width, blocks=blocks, is_log=False)
    return table


def _norms(run: RunFolder, *, width: int, blocks: str, every: bool) -> Table:
    """Of each group: the median over its ranks, at what the decoder reads; then the global ones."""
    table = _grid(right=(2,))
    for decoder in run.model.decoders:
        found = lines.norms(run, decoder, every=every)
        units = {f"unit {unit}": curve for unit, curve in lines.unit_norms(run, decoder).items()}
        _curves(table, decoder, found | units, width=width, blocks=blocks, is_log=True)
    names = {"grad_norm": "all units", "grad_norm_clipped": "clipped"}
    shared = {names[key]: curve for key, curve in run.model.shared.items()}
    _curves(table, "global", shared, width=width, blocks=blocks, is_log=True)
    return table


def _curves(
    table: Table, name: str, curves: dict[str, Curve], *, width: int, blocks: str, is_log: bool
) -> None:
    room = max(10, width - 42)
    for index, (key, curve) in enumerate(curves.items()):
        values = curve.values
        table.add_row(
            Text(name if index == 0 else "", style="bold"),
            Text(key),
            number(values[-1]),
            Text(sparkline(values, width=room, blocks=blocks, is_log=is_log), style="cyan"),
        )


def _health(run: RunFolder) -> RenderableType:
    if not run.model.health:
        return Text("no health rows in this run", style="dim")
    parts = []
    for decoder, row in run.model.health.items():
        state = str(row.get("state", "unknown"))
        text = Text.assemble((decoder, "bold"), "  ", (state, _STATES.get(state, "bold")))
        text.append(f"  stage {row.get('stage')} step {row.get('step')}", style="dim")
        if reason_of(row):
            text.append(f"  {reason_of(row)}", style=_STATES.get(state, ""))
        text.append("\n  " + ", ".join(lines.gauges(row)))
        parts.append(text)
    return Group(*parts)


def _speed(run: RunFolder) -> Text | None:
    seconds = list(run.model.step_seconds().values())
    if not seconds:
        return None
    return Text(
        f"min {seconds[-1]:.2f}, median {median(seconds):.2f}, max {seconds[0]:.2f}; slowest: "
        f"{lines.slowest(run, count=3)}"
    )


def _grid(*, right: Iterable[int] = ()) -> Table:
    table = Table.grid(padding=(0, 1))
    for index in range(5):
        table.add_column(justify="right" if index in right else "left", no_wrap=True)
    return table
