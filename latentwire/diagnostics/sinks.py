"""Where diagnostics go beside their file: TensorBoard, Weights & Biases.

The file is the stream itself. Sinks get its rows from a thread of rank 0 that reads them back, so
that a slow sink holds nobody up, and one that was not written to the file goes nowhere. Whatever
goes wrong in a sink is said once and switches it off; training goes on.
"""

import importlib.util
import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from latentwire.diagnostics.reading import Row, Tail, kind_of

log = logging.getLogger(__name__)

_NOT_SHOWN = ("schema", "step", "rank", "num_examples")


class Sink(Protocol):
    """Takes rows as they are written to the file."""

    def write(self, rows: Sequence[Row]) -> None:
        """Takes all rows of one step, or of one measurement of health."""

    def close(self) -> None:
        """Writes what is left."""


def missing_package(name: str) -> str | None:
    """What keeps a sink from being used: the end of a sentence that begins with its key."""
    if importlib.util.find_spec(name) is None:
        return f"needs {name}; pip install -e '.[{name}]', or leave it out"
    return None


class Sinks:
    """All sinks of a run behind one, closed as a context ends; none of them can stop the run.

    Args:
        makers: by name, what opens the sink. Opening one may fail like writing to it.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Sink]]) -> None:
        self._sinks: dict[str, Sink] = {}
        for name, make in makers.items():
            try:
                self._sinks[name] = make()
            except Exception as error:
                self._off(name, error)

    def __enter__(self) -> "Sinks":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def names(self) -> list[str]:
        """Of those that still get rows."""
        return list(self._sinks)

    def write(self, rows: Sequence[Row]) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                sink.write(rows)
            except Exception as error:
                self._off(name, error)

    def close(self) -> None:
        """Closes all of them; nothing is written any more."""
        for name, sink in list(self._sinks.items()):
            try:
                sink.close()
            except Exception as error:
                self._off(name, error)
        self._sinks.clear()

    def _off(self, name: str, error: Exception) -> None:
        log.warning("diagnostics.sinks: %s is off: %s: %s", name, type(error).__name__, error)
        if (sink := self._sinks.pop(name, None)) is not None:
            with suppress(Exception):
                sink.close()


def open_sinks(names: Sequence[str], folder: Path, *, run: str, config: Mapping[str, Any]) -> Sinks:
    """The sinks of a run.

    Args:
        names: from ``latentwire.config.SINKS``.
        folder: the run's; what is kept locally goes there.
        run: its name.
        config: the resolved configuration, as plain values.
    """
    makers: dict[str, Callable[[], Sink]] = {
        "tensorboard": lambda: TensorBoard(folder / "tensorboard"),
        "wandb": lambda: WeightsAndBiases(folder, run=run, config=config),
    }
    return Sinks({name: makers[name] for name in names})


class Feed:
    """Hands the rows that come to a file from now on to sinks, while its context lasts.

    Args:
        path: the file; what it holds already has been handed on by an earlier process.
        open_them: opens the sinks; called in the feed's own thread.
        interval: seconds between looks at the file.
        patience: seconds for which the context's end waits for the sinks to take the last rows.
    """

    def __init__(
        self,
        path: Path,
        open_them: Callable[[], Sinks],
        *,
        interval: float = 1.0,
        patience: float = 60.0,
    ) -> None:
        self._tail = Tail(path)
        self._open = open_them
        self._interval = interval
        self._patience = patience
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sinks", daemon=True)

    def __enter__(self) -> "Feed":
        self._tail.poll()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._is_over.set()
        # A failure is reported first of all.
        patience = self._patience if kind is None else min(5.0, self._patience)
        self._thread.join(patience)
        if self._thread.is_alive():
            log.warning(
                "diagnostics.sinks: did not take the last rows within %.0f s; all of them are in "
                "the diagnostics file",
                patience,
            )

    def _run(self) -> None:
        with self._open() as sinks:
            while sinks.names:
                is_last = self._is_over.wait(self._interval)
                rows = self._tail.poll()
                if rows:
                    sinks.write(rows)
                if is_last:
                    return


class TensorBoard:
    """Event files, one folder a stage, so that steps start anew in each.

    Args:
        folder: made when the first row comes.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make: Callable[..., Any] = SummaryWriter
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def write(self, rows: Sequence[Row]) -> None:
        for row, values in named(rows):
            stage, step = str(row["stage"]), int(row["step"])
            if stage not in self._writers:
                # A resumed run repeats steps; what an earlier file has of them is dropped.
                self._writers[stage] = self._make(str(self._folder / stage), purge_step=step)
            time = _seconds(row)
            for key, value in values.items():
                if isinstance(value, str):
                    self._writers[stage].add_text(key, value, step, walltime=time)
                else:
                    self._writers[stage].add_scalar(key, value, step, walltime=time)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, whose mode its own variable ``WANDB_MODE`` sets.

    Args:
        folder: keeps its files, and the id under which a resumed run goes on.
        run: its name there.
        config: shown with it.
    """

    def __init__(self, folder: Path, *, run: str, config: Mapping[str, Any]) -> None:
        import wandb

        file = folder / "wandb_id"
        identity = file.read_text().strip() if file.is_file() else uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project="latentwire",
            dir=str(folder),
            id=identity,
            name=run,
            config=dict(config),
            resume="allow",
            # Its own log lines would go between ours; a login that nobody answers must end.
            settings=wandb.Settings(console="off", silent=True, login_timeout=30),
        )
        file.write_text(identity + "\n")
        self._stages: set[str] = set()

    def write(self, rows: Sequence[Row]) -> None:
        values: dict[tuple[str, int], dict[str, Any]] = {}
        for row, found in named(rows):
            place = (str(row["stage"]), int(row["step"]))
            values.setdefault(place, {}).update(found)
        for (stage, step), found in values.items():
            if stage not in self._stages:
                self._stages.add(stage)
                self._run.define_metric(f"{stage}/step")
                self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            own = {f"{stage}/{key}": value for key, value in found.items()}
            self._run.log({f"{stage}/step": step, **own})

    def close(self) -> None:
        self._run.finish()


def named(rows: Sequence[Row]) -> Iterator[tuple[Row, dict[str, float | str]]]:
    """Each row with its values by ``<key>/<decoder>``, or ``<key>/<decoder>/rank<n>``.

    What is equal on the ranks of a group is taken from the first of them only. Health is under
    ``health/``; what was not finite is left out, as it is null in the row.
    """
    seen: set[tuple[Any, ...]] = set()
    for row in rows:
        if not isinstance(row.get("stage"), str) or not isinstance(row.get("step"), int):
            continue
        is_health = kind_of(row) == "health"
        decoder = row.get("decoder")
        group = (row["stage"], row["step"], decoder, is_health)
        is_first = group not in seen
        seen.add(group)
        found: dict[str, float | str] = {}
        for key, value in row.items():
            is_text = is_health and key in ("state", "reason") and isinstance(value, str) and value
            if key in _NOT_SHOWN or not (is_text or _is_number(value)):
                continue
            if is_health:
                found[f"health/{key}/{decoder}"] = value
            elif is_local(key):
                found[f"{key}/{decoder}/rank{row.get('rank')}"] = value
            elif is_first:
                found[f"{key}/{decoder}"] = value
        yield row, found


def is_local(key: str) -> bool:
    """Whether each rank has a value of its own."""
    is_norm = key.startswith("grad_") and not key.startswith("grad_norm") and "/" not in key
    own = ("_local", "_part", "_seconds", "_bytes")
    return is_norm or key.endswith(own) or key in ("sec_per_step", "dropped")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _seconds(row: Row) -> float | None:
    try:
        return datetime.fromisoformat(str(row["time"]).replace("Z", "+00:00")).timestamp()
    except (KeyError, ValueError):
        return None
