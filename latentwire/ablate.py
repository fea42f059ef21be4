"""``latentwire ablate``: every component on and off around a default, and what was learned.

A file names a default and rows that each change a few keys of it; each row is trained once for
each of its seeds, one run per GPU or core. Results go into ``ablations.json`` as runs finish and
are rendered from there, so the table outlives the runs: a row is not trained again while its
configuration stays what it was, on whatever machine.
"""

import hashlib
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from latentwire import config_file
from latentwire.ablating.file import Ablation, Row, read_file
from latentwire.ablating.report import write_report
from latentwire.ablating.results import (
    RESULTS,
    Result,
    UnreadableRunError,
    harvest,
    read_results,
    write_results,
)
from latentwire.arguments import Parser
from latentwire.config import Config, ConfigError, DecoderConfig, flatten
from latentwire.config_file import PACKAGED, REPOSITORY
from latentwire.points import Point, Runner, devices, is_finished, refuse_shared_rows
from latentwire.training.preflight import preflight
from latentwire.training.run_folder import log_to
from latentwire.training.status import read_status
from latentwire.writable import folder_problems, make_folder

log = logging.getLogger(__name__)

_NOT_OF_A_ROW = ("run.", "checkpoint.", "teacher.folder")
"""Keys that name a run and do not change what it learns."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One row with one seed."""

    row: Row
    seed: int
    point: Point
    digest: str
    """Of the configuration: a result with another one is out of date."""

    def is_known(self, results: Mapping[str, Result]) -> bool:
        """Whether ``results``, by trial, have one of this very configuration."""
        result = results.get(self.point.name)
        return result is not None and result.digest == self.digest


def digest_of(config: Config) -> str:
    """Names what a configuration trains: of its keys that differ from the defaults, without those
    that only name the run. A key that is new to the program does not change it, nor does the place
    of the repository whose models a packaged recipe names."""
    decoders = {name: DecoderConfig(model="") for name in config.decoders}
    plain, own = flatten(Config(decoders=decoders)), flatten(config)
    kept = {
        key: value.removeprefix(f"{REPOSITORY}/") if isinstance(value, str) else value
        for key, value in own.items()
        if not key.startswith(_NOT_OF_A_ROW) and (key not in plain or plain[key] != value)
    }
    text = json.dumps([kept, config.run.seed], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def trials(ablation: Ablation, *, root: str, checkpoints: str) -> list[Trial]:
    """Every row with every one of its seeds, checked.

    Raises:
        ConfigError: with every problem of every row, none of which has started.
    """
    found: list[Trial] = []
    problems: dict[str, list[str]] = {}
    # The first seed of every row comes before the second of any.
    numbered = [
        (number, row, seed) for row in ablation.rows for number, seed in enumerate(row.seeds)
    ]
    for _, row, seed in sorted(numbered, key=lambda entry: entry[0]):
        overrides = [*ablation.overrides, *row.change, f"run.seed={seed}", f"run.root={root}"]
        overrides.append(f"checkpoint.root={checkpoints}")
        try:
            digest = digest_of(config_file.load(ablation.base, overrides))
            name = f"{row.name}-s{seed}"
            overrides.append(f"run.tag={name}-{digest}")
            plan = preflight(config_file.load(ablation.base, overrides), world_size=1)
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(row.name)
            continue
        point = Point(name=name, overrides=tuple(overrides), plan=plan)
        found.append(Trial(row=row, seed=seed, point=point, digest=digest))
    if problems:
        said = {what: ", ".join(dict.fromkeys(names)) for what, names in problems.items()}
        raise ConfigError([f"{names}: {what}" for what, names in said.items()])
    return found


def command(ablation: Ablation, point: Point) -> list[str]:
    """The command line of one trial."""
    return [
        *(sys.executable, "-m", "latentwire.train"),
        *("--recipe", ablation.base, *point.overrides),
    ]


def run(
    ablation: Ablation,
    every: Sequence[Trial],
    *,
    out: Path,
    known: dict[str, Result],
    only: Sequence[str],
    workers: int,
) -> int:
    """Runs what is not known yet, and writes results and report as each ends; the exit code.

    Args:
        known: results by trial; grows.
        only: rows to run; none given runs all.
    """
    by_name = {trial.point.name: trial for trial in every}
    order = {trial.point.name: number for number, trial in enumerate(every, start=1)}

    def keep(trial: Trial) -> None:
        # Others may be running beside it, and none of them ends for want of a file.
        try:
            known[trial.point.name] = harvest(
                trial.point.plan.run_folder,
                trial.point.plan.config,
                row=trial.row.name,
                digest=trial.digest,
            )
            write_results(out / RESULTS, known)
            report(ablation, every, known, out)
        except (OSError, UnreadableRunError) as error:
            again = (
                "the same command does"
                if isinstance(error, OSError)
                else "`latentwire eval` measures it anew"
            )
            log.error("%s: not taken in (%s); %s", trial.point.name, error, again)
            failed.append(trial.point.name)

    left: list[Point] = []
    failed: list[str] = []
    for trial in every:
        if trial.is_known(known):
            continue
        if is_finished(trial.point.plan):
            keep(trial)
        elif not only or trial.row.name in only:
            left.append(trial.point)
    log.info("%d trials, %d to run, %d at a time", len(every), len(left), workers)

    def started(point: Point) -> None:
        log.info("%s: trial %d of %d", point.name, order[point.name], len(every))

    def ended(point: Point, finished: bool) -> None:
        if finished:
            keep(by_name[point.name])
        elif runner.stopped_by is None:
            reason = read_status(point.plan.run_folder).get("reason", "unknown")
            log.error("%s: failed (%s); going on with the next", point.name, reason)
            failed.append(point.name)

    runner = Runner(partial(command, ablation), workers=workers, started=started, ended=ended)
    runner.run(left)
    log.info("\n%s", report(ablation, every, known, out))
    if runner.stopped_by is not None:
        log.error("stopped by a signal; the same command goes on")
        return 128 + runner.stopped_by
    if failed:
        log.error("%d of %d trials failed: %s", len(failed), len(every), ", ".join(failed))
    return 1 if failed else 0


def report(ablation: Ablation, every: Sequence[Trial], known: dict[str, Result], out: Path) -> str:
    """Writes the report from what is known and up to date; returns its table."""
    current = {
        trial.point.name: known[trial.point.name] for trial in every if trial.is_known(known)
    }
    return write_report(out, ablation, current)


def main(arguments: Sequence[str]) -> int:
    """Runs an ablation.

    Returns:
        0 every trial is known, 1 some failed or the report cannot be written, 2 bad input,
        128 + n stopped by signal n.
    """
    log_to(None, rank=0)
    parser = Parser(prog="latentwire ablate", description=__doc__, allow_abbrev=False)
    parser.add_argument("--file", type=Path, default=PACKAGED / "ablations.yaml", help="the rows")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/ablations"), help="folder of results and report"
    )
    parser.add_argument("--runs", default="runs/ablations", help="folder of the runs")
    parser.add_argument("--checkpoints", default="checkpoints/ablations", help="of theirs")
    parser.add_argument("--only", default="", metavar="A,B", help="run these rows, report all")
    parser.add_argument(
        "--jobs",
        type=int,
        default=len(devices()) or len(os.sched_getaffinity(0)),
        help="runs at a time; one on each GPU, or core, if not given",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="name the trials and what is known of them, and end"
    )
    try:
        options = parser.parse_args(list(arguments))
        ablation = read_file(options.file)
        only = [name for name in options.only.split(",") if name]
        _check(ablation, only=only, jobs=options.jobs)
        out: Path = options.out
        if problems := folder_problems({"--out": str(out)}):
            raise ConfigError(problems)
        every = trials(ablation, root=options.runs, checkpoints=options.checkpoints)
        known = read_results(out / RESULTS)
        if options.jobs > 1:
            refuse_shared_rows([trial.point for trial in every])
        if not options.dry_run:
            make_folder("--out", out)
    except ConfigError as error:
        print("\n  ".join(["latentwire ablate cannot start:", *error.problems]), file=sys.stderr)
        return 2
    if options.dry_run:
        for trial in every:
            chosen = "to run" if not only or trial.row.name in only else "left out by --only"
            there = "known" if trial.is_known(known) else "finished, to be taken in"
            has_one = trial.is_known(known) or is_finished(trial.point.plan)
            print(f"{trial.point.name}: {there if has_one else chosen}")
        return 0
    try:
        return run(ablation, every, out=out, known=known, only=only, workers=options.jobs)
    except OSError as error:
        print(f"latentwire ablate: the report is not written: {error}", file=sys.stderr)
        return 1


def _check(ablation: Ablation, *, only: Sequence[str], jobs: int) -> None:
    names = [row.name for row in ablation.rows]
    problems = [
        f"--only: no row '{name}'; there are {', '.join(names)}"
        for name in only
        if name not in names
    ]
    if jobs < 1:
        problems.append(f"--jobs: {jobs} must be 1 or more")
    if problems:
        raise ConfigError(problems)
