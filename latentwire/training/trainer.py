"""The training loop of Stages A and B, top to bottom."""

import logging
import time
from collections.abc import Callable

from torch import Tensor
from tqdm import tqdm

from latentwire.data.loader import decoder_batch, global_batch, supervised_counts
from latentwire.distributed.assembly import Job
from latentwire.distributed.gradients import clip_factor, global_norm
from latentwire.training.objectives import measure, weighted
from latentwire.training.records import StepRecord
from latentwire.training.signals import StopRequest
from latentwire.training.stages import Stage, StepPlan

log = logging.getLogger(__name__)

Save = Callable[[str, int], None]
"""(stage, steps done) -> publishes a checkpoint; every rank calls it."""


class Trainer:
    """Runs stages on one rank; all ranks run the same one in step.

    Args:
        job: this rank's decoders, wire and groups.
        record: called with each step's record; every rank, every step.
        save: publishes a checkpoint.
    """

    def __init__(self, job: Job, *, record: Callable[[StepRecord], None], save: Save) -> None:
        self._job = job
        self._record = record
        self._save = save

    def run(self, stage: Stage, *, done: int, stop: StopRequest) -> str:
        """Trains ``stage`` from step ``done`` + 1 to its end.

        Returns:
            Why it ended early (``preempted`` or ``stopped``), or an empty string. Either way
            the last step is saved.
        """
        config, world = self._job.config, self._job.groups.world
        self._job.wire.train()
        quiet = True if world.rank else None
        steps = range(done + 1, stage.num_steps + 1)
        bar = tqdm(
            steps, desc=f"stage {stage.name}", initial=done, total=stage.num_steps, disable=quiet
        )
        for step in bar:
            record = self.step(stage.plan(step))
            self._record(record)
            if record.progress:
                bar.set_postfix(record.progress)
            reason = stop.agreed(world)
            interval = config.checkpoint.interval
            if reason or step == stage.num_steps or (interval and step % interval == 0):
                self._save(stage.name, step)
            if reason:
                bar.close()
                return reason
        return ""

    def step(self, plan: StepPlan) -> StepRecord:
        """One optimizer step over the whole global batch."""
        job, config = self._job, self._job.config
        start = time.perf_counter()
        record = StepRecord(job, plan, counts=self._counts(plan))
        size = config.train.batch_size // config.train.accumulation
        for first in range(0, config.train.batch_size, size):
            last = first + size == config.train.batch_size
            for unit in job.units.values():
                unit.set_sync(last)
            self._forward(plan, record, first, first + size).backward()  # type: ignore[no-untyped-call]
        norm = global_norm(job.units, job.unit_names, job.groups.world, job.device)
        factor = clip_factor(norm, config.optim.max_grad_norm)
        for unit in job.units.values():
            unit.step(plan.rates, factor)
            unit.zero_grad()
        record.finish(norm, seconds=time.perf_counter() - start)
        return record

    def _forward(self, plan: StepPlan, record: StepRecord, first: int, stop: int) -> Tensor:
        """The loss of examples ``first`` to ``stop``: every hosted decoder reads its part."""
        job, config = self._job, self._job.config
        batch = global_batch(plan.examples[first:stop], job.any_prompts, mixed=plan.mixed)
        latents = job.latents(batch)
        losses = []
        for name in job.decoders:
            group = job.groups.decoder(name)
            own = decoder_batch(
                batch, job.prompts[name], job.tokenizer, part=group.rank, num_parts=group.size
            )
            measured = measure(job, name, batch, own, latents, with_teacher=record.with_norms)
            normalised = record.add(name, measured)
            loss = weighted(normalised, plan.weights, decoder_weight=config.decoders[name].weight)
            # The backend averages over the group; see distributed.exchange.scale_gradient.
            losses.append(group.size * loss)
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        return total

    def _counts(self, plan: StepPlan) -> dict[str, dict[str, int]]:
        k = self._job.config.objectives.k
        return {
            name: supervised_counts(plan.examples, prompts, k=k)
            for name, prompts in self._job.prompts.items()
        }
