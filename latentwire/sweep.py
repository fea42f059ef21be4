"""``latentwire sweep``: a cross product of configurations, run one after the other.

Each point is a run of its own, ``<tag>-<point>``, and the same command always ends in the same
table.
"""

import itertools
import logging
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from latentwire import config_file
from latentwire.arguments import Parser, add_run, with_flags
from latentwire.config import ConfigError
from latentwire.points import Point, Runner, is_finished, refuse_shared_rows
from latentwire.slurm import ArrayPoint, submit
from latentwire.sweep_table import row_of, write_tables
from latentwire.training.preflight import preflight
from latentwire.training.run_folder import log_to
from latentwire.training.status import read_status

log = logging.getLogger(__name__)

_FILE_KEYS = ("base", "tag", "nproc", "overrides", "lists")
_SHORT = {"wire.num_latents": "latent_len", "wire.refiner.layers": "refiner_layers"} | {
    "wire.refiner.heads": "refiner_heads"
}
"""Names of keys in a point's name, where the last part of the key would not do."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is swept."""

    recipe: str
    overrides: tuple[str, ...]
    """Of every point."""
    axes: Mapping[str, tuple[str, ...]]
    """Values of each swept key, as an override writes them."""
    nproc: int
    """Processes of each run."""
    slurm: bool = False
    """The points are submitted as an array of jobs, in place of being run here."""


def axis_names(keys: Sequence[str]) -> list[str]:
    """Short names of swept keys: the last part, with more in front where two would be alike."""
    names = []
    for key in keys:
        parts = key.split(".")
        alike = [other for other in keys if other.split(".")[-1] == parts[-1]]
        names.append(_SHORT.get(key) or "_".join(parts if len(alike) > 1 else parts[-1:]))
    return names


def point_name(keys: Sequence[str], values: Sequence[str]) -> str:
    """``latent_len8-d_z64``: short, and safe as a part of a folder's name."""
    pairs = zip(axis_names(keys), values, strict=True)
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", f"{name}{value}") for name, value in pairs)


def read_file(path: Path) -> dict[str, Any]:
    """A sweep's YAML file: ``base``, ``tag``, ``nproc``, ``overrides`` and ``lists``.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    tree, problems = config_file.read_mapping(path, _FILE_KEYS)
    for key in ("overrides", "lists"):
        if not isinstance(tree.get(key) or {}, dict):
            problems.append(f"{path}: '{key}' should map configuration keys, e.g. wire.d_z: [64]")
            tree[key] = {}
    for key, values in (tree.get("lists") or {}).items():
        if not isinstance(values, list):
            problems.append(f"{path}: lists.{key}: '{values}' should be a list, e.g. [8, 16]")
    nproc = tree.get("nproc", 1)
    if not isinstance(nproc, int) or isinstance(nproc, bool) or nproc < 1:
        problems.append(f"{path}: nproc: '{nproc}' should be a whole number, 1 or more")
    if problems:
        raise ConfigError(problems)
    return tree


def written(value: Any) -> str:
    """A YAML value as an override writes it."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=1 << 20).split("\n...")[0].strip()


def parse(arguments: Sequence[str]) -> tuple[Sweep, bool]:
    """Reads the command line; returns the sweep, and whether it is only to be shown.

    Raises:
        ConfigError: with every problem of the command line or the file.
    """
    parser = Parser(prog="latentwire sweep", description=__doc__, allow_abbrev=False)
    parser.add_argument("--file", type=Path, help="YAML: base, tag, nproc, overrides, lists")
    parser.add_argument("--list", action="append", default=[], metavar="KEY=A,B", dest="lists")
    parser.add_argument("--nproc", type=int, help="processes of each run (default 1)")
    parser.add_argument("--dry-run", action="store_true", help="check and name the points, and end")
    parser.add_argument(
        "--slurm", action="store_true", help="submit the points as an array, by launch/slurm/"
    )
    add_run(parser)
    parser.set_defaults(recipe=None)
    options = parser.parse_intermixed_args(list(arguments))
    given = read_file(options.file) if options.file else {}
    overrides = [f"{key}={written(value)}" for key, value in (given.get("overrides") or {}).items()]
    if "tag" in given:
        overrides.append(f"run.tag={given['tag']}")
    axes = {str(key): tuple(map(written, v)) for key, v in (given.get("lists") or {}).items()}
    listed = Counter(key for key, _ in map(_list_option, options.lists))
    if twice := [key for key, number in listed.items() if number > 1]:
        raise ConfigError(
            [f"--list {key}: given twice; give all its values at once" for key in twice]
        )
    sweep = Sweep(
        recipe=options.recipe or str(given.get("base", "smoke")),
        overrides=(*overrides, *with_flags(options)),
        axes=axes | dict(map(_list_option, options.lists)),
        nproc=given.get("nproc", 1) if options.nproc is None else options.nproc,
        slurm=options.slurm,
    )
    _check(sweep)
    return sweep, options.dry_run


def _list_option(text: str) -> tuple[str, tuple[str, ...]]:
    key, _, values = text.partition("=")
    return key, tuple(part.strip() for part in values.split(",") if part.strip())


def _check(sweep: Sweep) -> None:
    problems = []
    if not sweep.axes:
        problems.append("nothing to sweep; give --list KEY=A,B, or a --file with lists")
    if sweep.nproc < 1:
        problems.append(f"--nproc: {sweep.nproc} must be 1 or more")
    for key, values in sweep.axes.items():
        if not values or not key:
            problems.append(f"--list {key}: no values; give some, as {key or 'wire.d_z'}=64,128")
        if len(set(values)) < len(values):
            problems.append(f"--list {key}: {','.join(values)} has a value twice")
        problems += [
            f"{text}: also swept, by --list {key}={','.join(values)}; leave one out"
            for text in sweep.overrides
            if text.startswith(f"{key}=")
        ]
        if key in ("run.tag", "run.root"):
            problems.append(f"--list {key}: every point has its own tag already; sweep another key")
    if problems:
        raise ConfigError(problems)


def points(sweep: Sweep) -> tuple[Path, str, list[Point]]:
    """The sweep's folder, its tag and every point of the cross product, in order.

    Raises:
        ConfigError: with every problem of every point, none of which has started.
    """
    keys = list(sweep.axes)
    first = [f"{key}={values[0]}" for key, values in sweep.axes.items()]
    run = config_file.load(sweep.recipe, [*sweep.overrides, *first]).run
    found: list[Point] = []
    problems: dict[str, list[str]] = {}
    for values in itertools.product(*sweep.axes.values()):
        name = point_name(keys, values)
        overrides = [
            *sweep.overrides,
            *(f"{key}={value}" for key, value in zip(keys, values, strict=True)),
            f"run.tag={run.tag}-{name}",
        ]
        try:
            config = config_file.load(sweep.recipe, overrides)
            plan = preflight(config, world_size=sweep.nproc)
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(name)
            continue
        found.append(Point(name=name, values=values, overrides=tuple(overrides), plan=plan))
        if [point.name for point in found].count(name) > 1:
            problems.setdefault("two points have this name; write their values apart", [name])
    if problems:
        raise ConfigError([f"{', '.join(names)}: {what}" for what, names in problems.items()])
    return Path(run.root) / run.tag, run.tag, found


def command(sweep: Sweep, point: Point) -> list[str]:
    """The command line of one point."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1"),
        f"--nproc-per-node={sweep.nproc}",
        *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--local-addr=localhost"),
        *("-m", "latentwire.train", *_arguments(sweep, point)),
    ]


def _arguments(sweep: Sweep, point: Point) -> list[str]:
    return ["--recipe", sweep.recipe, *point.overrides]


def _submit(sweep: Sweep, folder: Path, tag: str, every: Sequence[Point]) -> int:
    """Submits what is left of a sweep; returns the exit code."""
    array = [
        ArrayPoint(
            name=point.name,
            values=point.values,
            run=str(point.plan.run_folder),
            arguments=tuple(_arguments(sweep, point)),
        )
        for point in every
    ]
    left = [number for number, point in enumerate(every) if not is_finished(point.plan)]
    axes = axis_names(list(sweep.axes))
    return submit(folder, tag, axes, array, left=left, nproc=sweep.nproc)


def run(sweep: Sweep, folder: Path, tag: str, every: Sequence[Point]) -> int:
    """Runs what is left of a sweep and writes its table; returns the exit code."""
    places = {
        point.name: f"point {number} of {len(every)}, {point.name}"
        for number, point in enumerate(every, start=1)
    }
    failed: list[str] = []

    def started(point: Point) -> None:
        log.info("%s: run '%s'", places[point.name], point.plan.config.run.tag)

    def ended(point: Point, finished: bool) -> None:
        if not finished and runner.stopped_by is None:
            reason = read_status(point.plan.run_folder).get("reason", "unknown")
            log.error("%s: failed (%s); going on with the next", places[point.name], reason)
            failed.append(point.name)

    runner = Runner(partial(command, sweep), started=started, ended=ended)
    left = [point for point in every if not is_finished(point.plan)]
    for point in every:
        if point not in left:
            log.info("%s: finished before", places[point.name])
    runner.run(left)
    rows = [row_of(point.name, point.values, point.plan.run_folder) for point in every]
    text = write_tables(folder, tag, axis_names(list(sweep.axes)), rows)
    log.info("\n%s\nsweep.md, sweep.csv and sweep.svg are in %s", text, folder)
    if runner.stopped_by is not None:
        log.error("stopped by a signal; the same command goes on")
        return 128 + runner.stopped_by
    if failed:
        log.error("%d of %d points failed: %s", len(failed), len(every), ", ".join(failed))
    return 1 if failed else 0


def main(arguments: Sequence[str]) -> int:
    """Runs a sweep.

    Returns:
        0 every point finished, 1 some failed, 2 bad input, 128 + n stopped by signal n.
    """
    log_to(None, rank=0)
    try:
        sweep, dry_run = parse(arguments)
        folder, tag, every = points(sweep)
        if sweep.slurm:
            refuse_shared_rows(every)
    except ConfigError as error:
        print("\n  ".join(["latentwire sweep cannot start:", *error.problems]), file=sys.stderr)
        return 2
    if dry_run:
        print("\n".join(point.plan.config.run.tag for point in every))
        return 0
    return (_submit if sweep.slurm else run)(sweep, folder, tag, every)
