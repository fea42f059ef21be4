"""Reads diagnostics: as rows, as a file that still grows, or as a pandas DataFrame."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentwire.config import OBJECTIVES
from latentwire.diagnostics.run_files import read_status
from latentwire.strict_json import parsed

if TYPE_CHECKING:
    import pandas

log = logging.getLogger(__name__)

Row = dict[str, Any]
"""One line of a diagnostics file."""

FILE = "diagnostics.jsonl"
_TEXT = ("run", "kind", "stage", "decoder", "mode")
_WHOLE = ("schema", "step", "rank", "num_tokens_local", "K", "num_examples")
COLUMNS = (
    *("schema", "run", "time", "kind", "stage", "step", "rank", "decoder", "mode"),
    *OBJECTIVES,
    *("first_acc", "tf_local", "num_tokens_local", "keep_prob", "text_share", "K"),
    *("grad_norm", "skipped", "num_examples", "sec_per_step", "nonfinite"),
)
"""Columns that every DataFrame has, in this order; those of further keys follow by name."""


def kind_of(row: Row) -> str:
    """``step`` or another kind of row; rows from before there were kinds are of steps."""
    return str(row.get("kind") or "step")


def reason_of(row: Row) -> str:
    """Why a health row has its state; empty where nothing is wrong."""
    reasons = row.get("reasons")
    found = reasons if isinstance(reasons, list) else [row.get("reason") or ""]
    return "; ".join(str(reason) for reason in found if reason)


class DropCount:
    """How many rows were dropped: each rank counts its own, from 0 in each process."""

    def __init__(self) -> None:
        self._last: dict[object, int] = {}
        self._before = 0

    def add(self, row: Row) -> None:
        rank, count = row.get("rank"), row.get("dropped")
        if not isinstance(count, int) or isinstance(count, bool) or row.get("late") is True:
            return
        last = self._last.get(rank, 0)
        if count < last:  # the run was resumed
            self._before += last
        self._last[rank] = count

    @property
    def total(self) -> int:
        return self._before + sum(self._last.values())


def stream_path(path: str | os.PathLike[str]) -> Path:
    """The diagnostics file of a run's folder, as its status tells; a file is taken as it is.

    A folder that was moved still has the file of its own, whatever the status says; and what is
    there but is no plain file is not opened.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    told = (read_status(path).get("files") or {}).get("diagnostics")
    own = path / FILE
    known = own if told is None else Path(told)
    is_awaited = not known.exists() and not own.is_file()
    return known if known.is_file() or is_awaited else own


def rows(path: str | os.PathLike[str], *, kind: str | None = None) -> Iterator[Row]:
    """The rows of a file or of a run's folder as they stand, read one by one.

    A torn last line is left out; a line inside the file that is no row is too, with a warning.

    Args:
        kind: only rows of this kind.

    Raises:
        FileNotFoundError: there is no such file.
    """
    file = stream_path(path)
    broken: list[int] = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            row = _parsed(line)
            if row is not None:
                if kind is None or kind_of(row) == kind:
                    yield row
            elif line.endswith(b"\n") and line.strip():
                broken.append(number)
    if broken:
        log.warning("%s: %d lines are no rows, the first is line %d", file, len(broken), broken[0])


def _parsed(line: bytes) -> Row | None:
    try:
        row = parsed(line)
    except ValueError:
        return None
    if not isinstance(row, dict):
        return None
    if not isinstance(row.get("nonfinite", []), list):
        del row["nonfinite"]  # of foreign rows; readers go through it
    return row


class Tail:
    """What was added to a growing file since it was last looked at.

    A resumed run replaces its file by a shorter one: then ``generation`` counts up, and ``poll``
    gives all rows again.

    Args:
        path: the file, or a run's folder; need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.generation = 0
        self._path = Path(path)
        self._file = stream_path(path)
        self._inode: int | None = None
        self._offset = 0
        self._last = b""

    def poll(self) -> list[Row]:
        """The rows that were completed since the last call, in the file's order."""
        if self._inode is None:
            self._file = stream_path(self._path)
        try:
            with self._file.open("rb") as file:
                self._check(file.fileno())
                file.seek(self._offset)
                added = file.read()
        except OSError:  # not there yet, or a file server's bad moment
            return []
        whole, end, _ = added.rpartition(b"\n")
        if not end:
            return []
        self._offset += len(whole) + 1
        lines = whole.split(b"\n")
        self._last = lines[-1] + b"\n"
        return [row for row in map(_parsed, lines) if row is not None]

    def _check(self, descriptor: int) -> None:
        """Starts over where the file is another one, or no longer what was read of it."""
        found = os.fstat(descriptor)
        start = max(0, self._offset - len(self._last))
        is_same = (
            found.st_ino == self._inode
            and found.st_size >= self._offset
            and os.pread(descriptor, len(self._last), start) == self._last
        )
        if self._inode is not None and not is_same:
            self.generation += 1
            self._offset, self._last = 0, b""
        self._inode = found.st_ino


def follow(
    path: str | os.PathLike[str],
    *,
    ended: Callable[[], bool] = lambda: False,
    interval: float = 1.0,
) -> Iterator[Row]:
    """Rows as they are written; all of them again where a resumed run replaced the file.

    Args:
        ended: whether nothing more will be written; asked before each look.
        interval: seconds between looks.
    """
    tail = Tail(path)
    while True:
        # What was written before the end is still read after it.
        is_last = ended()
        yield from tail.poll()
        if is_last:
            return
        time.sleep(interval)


def read(path: str | os.PathLike[str], *, kind: str | None = None) -> "pandas.DataFrame":
    """The rows as a DataFrame, one row each, in the file's order.

    ``COLUMNS`` are always there, with the same types, even of an empty file. Not measured and not
    finite are both missing values; ``nonfinite`` holds the names of what was not finite. ``time``
    is in UTC. ``state`` is the objective; the state of a health row is under ``health_state``.

    Args:
        path: the file, or a run's folder.
        kind: only rows of this kind, as ``step`` or ``health``.

    Raises:
        FileNotFoundError: there is no such file.
    """
    import pandas as pd

    found = [_one_meaning(row) for row in rows(path, kind=kind)]
    further = sorted({key for row in found for key in row} - set(COLUMNS))
    columns = {key: [row.get(key) for row in found] for key in (*COLUMNS, *further)}
    columns["nonfinite"] = [tuple(row.get("nonfinite") or ()) for row in found]
    frame = pd.DataFrame({key: pd.Series(of, dtype=object) for key, of in columns.items()})
    for key in COLUMNS:
        if key in _TEXT:
            frame[key] = frame[key].astype("string")
        elif key in _WHOLE:
            frame[key] = pd.to_numeric(frame[key]).astype("Int64")
        elif key == "time":
            found_times = pd.to_datetime(frame[key], utc=True, format="ISO8601", errors="coerce")
            frame[key] = found_times.dt.as_unit("us")
        elif key == "skipped":
            frame[key] = frame[key].astype("boolean")
        elif key != "nonfinite":
            frame[key] = pd.to_numeric(frame[key]).astype("float64")
    for key in further:
        frame[key] = frame[key].infer_objects()
        if all(value is None or _is_number(value) for value in columns[key]):
            frame[key] = pd.to_numeric(frame[key]).astype("float64")
    return frame


def _one_meaning(row: Row) -> Row:
    """The row with its kind, and with no text where other rows have the objective ``state``."""
    row = {**row, "kind": kind_of(row)}
    if isinstance(row.get("state"), str):
        row["health_state"] = row.pop("state")
    return row


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
