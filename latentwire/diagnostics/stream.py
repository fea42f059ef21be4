"""A run's JSON Lines files: every rank's rows, written by rank 0, valid JSON always."""

import json
import math
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from latentwire.distributed.groups import Group
from latentwire.distributed.messages import gather_json
from latentwire.files import publish

SCHEMA = 2
"""Version of the rows; 2 has kinds of rows."""
_START = 1024
"""Bytes of a file that tell whether it is a stream; without an end of line there may be many."""
_STAGE_ORDER = {"A": 0, "B": 1}


class DiagnosticsStream:
    """Gathers rows of steps to rank 0 and appends them to a JSON Lines file.

    Args:
        path: the file.
        run: the run's tag, written into every row.
        world: all ranks; each must call ``write`` equally often.
    """

    def __init__(self, path: Path, *, run: str, world: Group) -> None:
        self._path = path
        self._run = run
        self._world = world

    def forget_after(self, stage: str, step: int) -> None:
        """Drops this run's rows beyond (stage, step), which it repeats, and a torn last line.

        Rows of other runs in the same file stay.
        """
        if self._world.rank != 0 or not self._path.exists():
            return
        kept = []
        for line in self._path.read_bytes().split(b"\n"):
            try:
                row = json.loads(line)
                place = (_STAGE_ORDER[row["stage"]], row["step"])
                is_other = row.get("run", self._run) != self._run
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if is_other or place <= (_STAGE_ORDER[stage], step):
                kept.append(line + b"\n")
        # A link to the file stays one.
        publish(self._path.resolve(), b"".join(kept), durably=False)

    def write(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
        """Appends every rank's rows in rank order; returns them all on rank 0. All ranks call."""
        gathered = gather_json([encodable(row) for row in rows], self._world)
        if gathered is None:
            return None
        time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        every = [
            {"schema": SCHEMA, "run": self._run, "time": time, **row}
            for rank_rows in gathered
            for row in rank_rows
        ]
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in every)
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError:
            # Half a row would spoil the one that comes after it.
            if self._path.exists():
                os.truncate(self._path, size)
            raise
        return every


def is_stream(path: Path) -> bool:
    """Whether an existing file is empty or starts as a diagnostics stream does."""
    with path.open("rb") as file:
        start = file.read(_START)
    is_empty = not start.strip() and len(start) < _START
    return is_empty or start.lstrip().startswith(b'{"schema": ')


def encodable(row: dict[str, Any]) -> dict[str, Any]:
    """The row with non-finite numbers as null, their keys listed under ``nonfinite``."""
    bad = [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
    if not bad:
        return row
    return {k: None if k in bad else v for k, v in row.items()} | {"nonfinite": bad}
