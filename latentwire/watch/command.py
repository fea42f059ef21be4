"""``latentwire watch runs/<tag>``: how a run goes, live in a terminal, or as plain lines."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from latentwire.arguments import Parser
from latentwire.config import ConfigError
from latentwire.watch import lines
from latentwire.watch.folder import RunFolder
from latentwire.watch.screen import picture

_LONGEST = 86400


def main(arguments: Sequence[str]) -> int:
    """Shows a run until it ends; one that has ended is shown once.

    Returns:
        0, or 2 for bad input.
    """
    parser = Parser(prog="latentwire watch", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="a run's folder, e.g. runs/smoke")
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="between two looks"
    )
    parser.add_argument("--once", action="store_true", help="show how it stands now, and end")
    parser.add_argument(
        "--wait",
        action="store_true",
        help="stay when the run is preempted or fails, as a scheduler queues it again",
    )
    parser.add_argument(
        "--every", action="store_true", help="show objectives that are only measured too"
    )
    try:
        options = parser.parse_args(list(arguments))
        if not 0 < options.interval <= _LONGEST:
            said = f"--interval: {options.interval} must be above 0, and at most {_LONGEST} (a day)"
            raise ConfigError([said])
        run = RunFolder(options.run, waits=options.wait)
    except ConfigError as error:
        print("\n".join(["latentwire watch:", *error.problems]), file=sys.stderr)
        return 2
    run.look()
    try:
        if sys.stdout.isatty():
            _draw(run, interval=options.interval, once=options.once, every=options.every)
        else:
            _print(run, interval=options.interval, once=options.once)
    except KeyboardInterrupt:
        pass  # the usual way to leave
    return 0


def _draw(run: RunFolder, *, interval: float, once: bool, every: bool) -> None:
    console = Console(highlight=False)
    plain = not console.encoding.lower().startswith("utf")

    def drawn() -> RenderableType:
        return picture(run, width=console.width, plain=plain, every=every)

    if once or run.is_over:
        console.print(drawn())
        return
    with Live(console=console, auto_refresh=False, get_renderable=drawn) as live:
        while not run.is_over:
            live.refresh()
            time.sleep(interval)
            run.look()
        live.refresh()


def _print(run: RunFolder, *, interval: float, once: bool) -> None:
    if once or run.is_over:
        print("\n".join(lines.snapshot(run)), flush=True)
        return
    changes = lines.Changes()
    print("\n".join([lines.head(run), *map(lines.stage_line, run.stages)]), flush=True)
    state = run.state
    while True:
        if run.state != state and not run.is_over:
            print(lines.head(run), flush=True)
        state = run.state
        for line in changes.of(run):
            print(line, flush=True)
        if run.is_over:
            break
        time.sleep(interval)
        run.look()
    print("\n".join([lines.head(run), *lines.result_lines(run)]), flush=True)
