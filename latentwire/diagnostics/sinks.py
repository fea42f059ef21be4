"""Where diagnostics go beside their file: TensorBoard, Weights & Biases.

The file is the stream itself (``stream``). A sink gets the same rows, on rank 0. Whatever goes
wrong in one is said once and switches it off; training goes on.
"""

import importlib.util
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from latentwire.diagnostics.reading import Row, kind_of

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
        return f"needs {name}; pip install 'latentwire[{name}]', or leave it out"
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
    is_norm = key.startswith("grad_") and not key.startswith("grad_norm")
    return is_norm or key.endswith(("_local", "_seconds", "_bytes")) or key == "sec_per_step"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _seconds(row: Row) -> float | None:
    try:
        return datetime.fromisoformat(str(row["time"]).replace("Z", "+00:00")).timestamp()
    except (KeyError, ValueError):
        return None
