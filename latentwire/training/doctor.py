"""Examines the wire while it trains: gauges at intervals, judged, as rows for the stream."""

from collections.abc import Mapping, Sequence
from typing import Any

from latentwire.data.example import Example
from latentwire.diagnostics.gauges import measure, weight_squares
from latentwire.diagnostics.health import Health
from latentwire.distributed.assembly import Job
from latentwire.training.records import StepRecord
from latentwire.training.stages import Stage
from latentwire.wire.parts import DECODER_PARTS, SHARED_PARTS, unit_name


class Doctor:
    """Examines one run on one rank; all ranks examine in step, and all must make one.

    Args:
        examples: held out, the same on every rank; may be empty with interval 0.
        stages: of the run, in order.
        memory: of the run before it was resumed, as ``memory`` gave it.
    """

    def __init__(
        self,
        job: Job,
        examples: Sequence[Example],
        *,
        stages: Sequence[Stage],
        memory: Mapping[str, Any] | None = None,
    ) -> None:
        memory = memory or {}
        self.rank = job.groups.rank
        self.stops_on_collapse = job.config.diagnostics.stop_on_collapse
        self._job = job
        self._examples = examples
        self._lengths = {stage.name: stage.num_steps for stage in stages}
        self._trained: dict[str, int] = dict(memory.get("steps", {}))
        self._start = memory.get("start") or (weight_squares(job) if examples else {})
        warmup = job.config.diagnostics.health_warmup
        self._health = Health(warmup=warmup, past=memory.get("past"))

    def memory(self) -> dict[str, Any]:
        """What a resumed run needs to judge as this one would, as JSON holds it."""
        return {"start": self._start, "past": self._health.past(), "steps": self._trained}

    def passed(self, step: StepRecord) -> None:
        """The run has trained a step; the last of a stage may come before its planned end."""
        self._trained[step.stage] = step.step

    def examine(self, step: StepRecord) -> list[dict[str, Any]]:
        """A row of gauges for each decoder of the job, the same on every rank. All must call."""
        plan = step.plan
        number = self._job.config.diagnostics.health_samples
        trained = plan.examples[:number]
        found = measure(self._job, self._examples, trained, step.updates, self._start)
        rows = []
        for decoder, gauges in found.items():
            verdict = self._health.judge(
                decoder,
                gauges,
                steps=self.num_trained(step.stage, step.step),
                unreached=self._unreached(step, decoder),
            )
            row = {"stage": step.stage, "step": step.step, "rank": 0, "decoder": decoder}
            row |= {"state": verdict.state, "reasons": list(verdict.reasons), **gauges}
            rows.append(row)
        return rows

    @staticmethod
    def _unreached(step: StepRecord, decoder: str) -> set[str]:
        """Parts without a gradient that should have one."""
        squares = step.gradient.part_squares
        found = {
            part
            for unit, parts in (("encoder", SHARED_PARTS), (unit_name(decoder), DECODER_PARTS))
            for part in parts
            if float(squares[unit][part]) == 0
        }
        # An untrained head has none.
        return found if step.plan.weights["gist"] > 0 else found - {"gist"}

    def num_trained(self, stage: str, step: int) -> int:
        """Steps that the run has trained up to one of ``stage``."""
        before = 0
        for name, length in self._lengths.items():
            if name == stage:
                break
            # A checkpoint of before this was noted says nothing of it.
            before += self._trained.get(name, length)
        return before + step
