"""``latentwire slurm``: what the batch scripts of ``launch/slurm/`` ask, and the arrays they run.

``requeue`` says at the end of an attempt whether its job is to be queued again; ``point`` and
``table`` are a sweep's point, and the table of all of them.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from latentwire import arguments as trainer
from latentwire import config_file
from latentwire.arguments import Parser
from latentwire.checkpointing.commit import newest
from latentwire.config import Config, ConfigError
from latentwire.diagnostics import reading
from latentwire.sweep_table import Row, row_of, write_tables
from latentwire.training.status import read_status

log = logging.getLogger(__name__)

ATTEMPTS = "attempts.jsonl"
"""In a run's folder, a line for each attempt at it that a batch script has seen end."""
_KEYS = {"job", "checkpoint", "num_stuck"}
"""Of a line, what the next attempt asks for."""
SWEEP = "sweep.json"
_SCRIPT = config_file.REPOSITORY / "launch" / "slurm" / "sweep.sbatch"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What becomes of a job whose attempt has ended."""

    requeue: bool
    why: str


def judge(
    state: str,
    code: int | None,
    *,
    launcher: int,
    num_stuck: int,
    max_attempts: int,
    reason: str = "",
) -> Verdict:
    """Whether a job is queued again.

    Args:
        state: of the run's status.
        code: of its status, None where it came to none.
        launcher: the launcher's own code.
        num_stuck: attempts in a row, this one included, that left no new checkpoint.
        max_attempts: as ``distributed.max_attempts``.
        reason: of the status.
    """
    if state == "finished":
        return Verdict(requeue=False, why="the run is finished")
    if state == "stopped":
        return Verdict(requeue=False, why=f"the run was stopped: {reason}")
    if state == "failed" and code == 2:
        return Verdict(requeue=False, why=f"the run cannot start: {reason}")
    what = f"the run failed: {reason}"
    if state == "preempted" and launcher == 0:
        what = "the run was preempted"
    elif state != "failed":
        what = f"the run ended without a word (code {launcher})"
    if num_stuck >= max_attempts:
        why = (
            f"{what}; {num_stuck} attempts in a row left no new checkpoint "
            f"(distributed.max_attempts={max_attempts}), so the job is not queued again"
        )
        return Verdict(requeue=False, why=why)
    return Verdict(requeue=True, why=f"{what}; it goes on from its last checkpoint")


def conclude(
    config: Config,
    *,
    job: str,
    attempt: int,
    code: int,
    since: datetime | None = None,
    now: datetime | None = None,
) -> Verdict:
    """Judges an attempt that has ended, and leaves a line about it in the run's folder.

    Args:
        job: the scheduler's number.
        code: of the launcher.
        since: when the attempt began; None where that is not known.
    """
    folder = Path(config.run.root) / config.run.tag
    status = _said(read_status(folder), since=None if code == 0 else since)
    step = newest(Path(config.checkpoint.root) / config.run.tag)
    reached = step.name if step else ""
    before = _attempts(folder)
    was = before[-1]["checkpoint"] if before else ""
    stuck = [line for line in before if line["job"] == job]
    num_stuck = 0 if reached != was else 1 + (stuck[-1]["num_stuck"] if stuck else 0)
    verdict = judge(
        str(status.get("state", "running")),
        status.get("code"),
        launcher=code,
        num_stuck=num_stuck,
        max_attempts=config.distributed.max_attempts,
        reason=str(status.get("reason") or "it left no reason"),
    )
    line = {
        "time": (now or datetime.now(timezone.utc)).isoformat(timespec="seconds"),
        "job": job,
        "attempt": attempt,
        "code": code,
        "state": status.get("state"),
        "checkpoint": reached,
        "num_stuck": num_stuck,
        "requeued": verdict.requeue,
        "why": verdict.why,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ATTEMPTS
        is_torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" * is_torn + json.dumps(line) + "\n")
    except OSError as error:
        # Attempts that nobody can count might go on for ever.
        why = f"{folder / ATTEMPTS} cannot be written ({error.strerror}), so the job is not queued"
        return Verdict(requeue=False, why=f"{verdict.why}; {why} again")
    return verdict


def _said(status: dict[str, Any], *, since: datetime | None) -> dict[str, Any]:
    """What a status says of an attempt that began at ``since``: nothing, where it is older."""
    refused = status.get("refused")
    if isinstance(refused, dict) and not _is_older(refused, since):
        return {**status, "state": "failed", "code": 2, "reason": refused.get("reason")}
    return {} if _is_older(status, since) else status


def _is_older(said: Mapping[str, Any], since: datetime | None) -> bool:
    try:
        return since is not None and datetime.fromisoformat(said["time"]) < since
    except (KeyError, TypeError, ValueError):
        return False


def _attempts(folder: Path) -> list[dict[str, Any]]:
    """What earlier ones left; a line that a full disk or a kill has torn is left out."""
    try:
        return [row for row in reading.rows(folder / ATTEMPTS) if row.keys() >= _KEYS]
    except OSError:
        return []


def _requeue(arguments: Sequence[str]) -> int:
    """0: queue it again; 3: do not; 2: the arguments make no sense."""
    parser = Parser(prog="latentwire slurm requeue", allow_abbrev=False)
    parser.add_argument("--code", type=int, required=True, help="of the launcher")
    parser.add_argument("--since", type=_time, help="when the attempt began, in ISO 8601 with zone")
    parser.add_argument("command", choices=["train", "eval"])
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    options = parser.parse_args(list(arguments))
    verdict = conclude(
        _config(options.rest),
        job=os.environ.get("SLURM_JOB_ID", ""),
        attempt=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        code=options.code,
        since=options.since,
    )
    print(f"slurm: {verdict.why}", file=sys.stderr)
    return 0 if verdict.requeue else 3


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return found


def _config(arguments: Sequence[str]) -> Config:
    options = trainer.parse(arguments)
    if options.wire is None:
        return config_file.load(options.recipe, options.overrides)
    # It brings torch, which nothing else here needs.
    from latentwire.training.exported_eval import exported_config

    return exported_config(Path(options.wire), options.overrides)


@dataclass(frozen=True, kw_only=True)
class ArrayPoint:
    """One point of a sweep, as its array's file holds it."""

    name: str
    values: tuple[str, ...]
    """Of the swept keys."""
    run: str
    """Its folder."""
    arguments: tuple[str, ...]
    """Of the trainer."""


def submit(
    folder: Path,
    tag: str,
    axes: Sequence[str],
    points: Sequence[ArrayPoint],
    *,
    left: Sequence[int],
    nproc: int,
) -> int:
    """Writes a sweep's file and submits an array of its points; returns the exit code.

    Args:
        folder: of the sweep.
        left: numbers of the points that are not finished, from 0.
        nproc: processes of each run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SWEEP
    tree = {"tag": tag, "axes": list(axes), "points": [asdict(point) for point in points]}
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    if not left:
        log.info("all %d points are finished\n%s", len(points), _write_table(path))
        return 0
    array = ",".join(map(str, left))
    command = ["sbatch", "--parsable", f"--array={array}", f"--job-name={tag}", str(_SCRIPT)]
    try:
        found = subprocess.run(
            [*command, str(path.absolute())],
            capture_output=True,
            text=True,
            env=os.environ | {"NPROC": str(nproc)},
        )
    except FileNotFoundError:
        log.error("sbatch is not on this machine; submit from a login node of the cluster")
        return 2
    if found.returncode:
        log.error("sbatch refused the array: %s", found.stderr.strip())
        return 2
    job = found.stdout.strip().partition(";")[0]
    log.info(
        "array %s: %d of %d points; the table will be in %s", job, len(left), len(points), folder
    )
    return 0


def _read_sweep(path: Path) -> tuple[str, list[str], list[ArrayPoint]]:
    try:
        tree: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        points = [
            ArrayPoint(
                name=item["name"],
                values=tuple(item["values"]),
                run=item["run"],
                arguments=tuple(item["arguments"]),
            )
            for item in tree["points"]
        ]
        return tree["tag"], tree["axes"], points
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError([f"{path}: is no file of latentwire sweep --slurm: {error}"]) from None


def _point(arguments: Sequence[str]) -> int:
    """Prints the trainer's arguments of a point, each followed by a NUL."""
    parser = Parser(prog="latentwire slurm point", allow_abbrev=False)
    parser.add_argument("file", type=Path)
    parser.add_argument("number", type=int)
    options = parser.parse_args(list(arguments))
    _, _, points = _read_sweep(options.file)
    if not 0 <= options.number < len(points):
        raise ConfigError([f"{options.file}: has points 0 to {len(points) - 1}"])
    print("".join(f"{word}\0" for word in points[options.number].arguments), end="")
    return 0


def _table(arguments: Sequence[str]) -> int:
    parser = Parser(prog="latentwire slurm table", allow_abbrev=False)
    parser.add_argument("file", type=Path)
    options = parser.parse_args(list(arguments))
    print(_write_table(options.file))
    return 0


def _write_table(path: Path) -> str:
    tag, axes, points = _read_sweep(path)

    def read() -> list[Row]:
        return [row_of(point.name, point.values, Path(point.run)) for point in points]

    rows = read()
    while True:
        text = write_tables(path.parent, tag, axes, rows)
        # Another task may have written meanwhile, and this one over it.
        rows, written = read(), rows
        if rows == written:
            return text


def main(arguments: Sequence[str]) -> int:
    """Runs one of the subcommands; returns the exit code, 2 for bad input."""
    commands = {"requeue": _requeue, "point": _point, "table": _table}
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help"):
        print(f"usage: latentwire slurm {{{','.join(commands)}}} ...\n\n{__doc__}", end="")
        return 0
    if name not in commands:
        print(f"latentwire slurm: one of {', '.join(commands)}", file=sys.stderr)
        return 2
    try:
        return commands[name](arguments[1:])
    except ConfigError as error:
        print("\n  ".join([f"latentwire slurm {name}:", *error.problems]), file=sys.stderr)
        return 2
