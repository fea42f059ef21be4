"""Examines the wire while it trains: gauges at intervals, judged, as rows for the stream."""

from collections.abc import Sequence
from typing import Any

from latentwire.data.example import Example
from latentwire.diagnostics.gauges import measure
from latentwire.diagnostics.health import Health
from latentwire.distributed.assembly import Job
from latentwire.training.records import StepRecord
from latentwire.training.stages import Stage

_RATE_OF = {"encoder": "encoder", "deep_prefix": "prefix"}
"""Which learning rate a part follows; the others the adapter's."""


class Doctor:
    """Examines one run on one rank; all ranks examine in step.

    Args:
        examples: held out, the same on every rank; may be empty with interval 0.
        stages: of the run, in order.
    """

    def __init__(self, job: Job, examples: Sequence[Example], *, stages: Sequence[Stage]) -> None:
        self.rank = job.groups.rank
        self.stops_on_collapse = job.config.diagnostics.stop_on_collapse
        self._job = job
        self._examples = examples
        self._lengths = {stage.name: stage.num_steps for stage in stages}
        self._health = Health(warmup=job.config.diagnostics.health_warmup)

    def examine(self, step: StepRecord) -> list[dict[str, Any]]:
        """A row of gauges for each decoder of the job, the same on every rank. All must call."""
        plan = step.plan
        number = self._job.config.diagnostics.health_samples
        found = measure(self._job, self._examples, plan.examples[:number], step.updates)
        # A skipped step moves nothing, and nothing is wrong with that.
        rates = {} if not step.updates or step.skip_reason else self._rates(plan.rates)
        rows = []
        for decoder, gauges in found.items():
            verdict = self._health.judge(
                decoder, gauges, steps=self._steps(step.stage, step.step), rates=rates
            )
            row = {"stage": step.stage, "step": step.step, "rank": 0, "decoder": decoder}
            row |= {"state": verdict.state, "reasons": list(verdict.reasons), **gauges}
            rows.append(row)
        return rows

    def _rates(self, rates: dict[str, float]) -> dict[str, float]:
        pretrained = self._job.config.encoder.kind == "lm"
        parts = {part for parts in self._job.trained_parts.values() for part in parts}
        names = {part: _RATE_OF.get(part, "adapter") for part in parts}
        if not pretrained and "encoder" in names:
            names["encoder"] = "adapter"
        return {part: rates[name] for part, name in names.items()}

    def _steps(self, stage: str, step: int) -> int:
        before = 0
        for name, length in self._lengths.items():
            if name == stage:
                break
            before += length
        return before + step
