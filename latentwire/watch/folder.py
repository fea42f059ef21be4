"""A run's folder, looked at again and again while the run goes on."""

from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from latentwire import strict_yaml
from latentwire.config import ConfigError
from latentwire.diagnostics.reading import Tail, rows, stream_path
from latentwire.diagnostics.run_files import own_rows, read_metrics
from latentwire.slurm import ATTEMPTS
from latentwire.strict_json import printable
from latentwire.training.status import FILES, read_status
from latentwire.watch.model import ENDED, STAGES, RunModel, StageProgress

_REFUSED = 2
"""Exit code of a run that could not start: to start it again is of no use."""


@dataclass
class RunFolder:
    """One run as it stands; ``look`` brings it up to date.

    Raises:
        ConfigError: there is no such run.
    """

    path: Path
    waits: bool = False
    """Something starts the run again where it ends early, as a scheduler does."""
    model: RunModel = field(default_factory=RunModel)
    status: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] | None = None
    """The newest validation."""
    num_steps: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not any((self.path / FILES[name]).exists() for name in ("config", "diagnostics")):
            raise ConfigError([f"{self.path}: no such run; give a run's folder, e.g. runs/smoke"])
        self._tail = Tail(self.path)
        self._validations = Tail(self.path / FILES["validation"])

    @property
    def state(self) -> str:
        return str(self.status.get("state", "unknown"))

    @property
    def is_over(self) -> bool:
        """A run that left no status is not waited for either."""
        may_go_on = self.state == "preempted" or (
            self.state == "failed" and self.status.get("code") != _REFUSED
        )
        is_waited_for = self.waits and may_go_on and not self._is_given_up()
        return not self.status or (self.state in ENDED and not is_waited_for)

    def _is_given_up(self) -> bool:
        """Whether the scheduler's job has said, since the run ended, that it does not go on."""
        try:
            last = list(rows(self.path / ATTEMPTS))[-1:]
        except OSError:
            return False
        return any(
            row.get("requeued") is False and str(row.get("time")) >= str(self.status.get("time"))
            for row in last
        )

    @property
    def stages(self) -> list[StageProgress]:
        return self.model.stages(num_steps=self.num_steps, state=self.state)

    def silence(self) -> float | None:
        """Seconds since the last row, by this machine's clock."""
        last = self.model.last_time
        if last is None:
            return None
        return max(0.0, (datetime.now(timezone.utc) - last).total_seconds())

    def look(self) -> None:
        """Reads what was written since the last look."""
        # The status first: a run that has ended has written all of its rows.
        status = printable(read_status(self.path))
        if status or not self.waits:  # a file server's bad moment ends no long watch
            self.status = status
        self.num_steps = self._planned_steps()
        generation = self._tail.generation
        found = self._tail.poll()
        if self._tail.generation != generation:
            self.model = RunModel()
        self.model.add(printable(own_rows(self.path, stream_path(self.path), found)))
        generation = self._validations.generation
        found = self._validations.poll()
        if self._validations.generation != generation:
            self.validation = None
        self.validation = printable(found[-1]) if found else self.validation

    def _planned_steps(self) -> dict[str, int]:
        """By the status, which knows stages given in epochs too, or else by the configuration."""
        told = self.status.get("num_steps")
        if isinstance(told, dict):
            return {str(name): steps for name, steps in told.items() if isinstance(steps, int)}
        try:
            train = strict_yaml.load_file(self.path / FILES["config"])["train"]
            found = {name: train[f"stage_{name.lower()}"]["steps"] for name in STAGES}
        except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError):
            return {}
        return {name: steps for name, steps in found.items() if isinstance(steps, int)}

    def result(self) -> dict[str, Any]:
        """What Stage C found; empty before."""
        found: dict[str, Any] = printable(read_metrics(self.path))
        return found
