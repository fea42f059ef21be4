"""The training loop of Stages A and B, top to bottom."""

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from latentwire.data.padding import Padding
from latentwire.distributed.assembly import Job
from latentwire.distributed.gradients import GlobalGradient, clip_factor, global_gradient
from latentwire.objectives.balance import Balance
from latentwire.training.balance import AutoWeights
from latentwire.training.guard import Guard, NonFiniteError
from latentwire.training.objectives import measure, weighted
from latentwire.training.prefetch import Prefetcher
from latentwire.training.preparation import PreparedBatch, PreparedStep, prepare
from latentwire.training.records import StepRecord
from latentwire.training.signals import StopRequest
from latentwire.training.stages import Stage, StepPlan
from latentwire.training.validation import Verdict, no_validation

log = logging.getLogger(__name__)

_FRESH = Balance()

Save = Callable[[str, int], None]
"""(stage, steps done) -> saves a checkpoint; every rank calls it."""


class Trainer:
    """Runs stages on one rank; all ranks run the same one in step.

    Args:
        job: this rank's decoders, wire and groups.
        record: called with each step's record; every rank, every step.
        save: saves a checkpoint.
        validate: called after each step, with whether the stage ends there; every rank.
        num_skipped: steps that the run skipped before it was resumed.
        num_tokens: tokens that the encoder had read by then.
        balance: of the objectives' weights, where the run is resumed.
    """

    def __init__(
        self,
        job: Job,
        *,
        record: Callable[[StepRecord], None],
        save: Save,
        validate: Callable[..., Verdict] = no_validation,
        num_skipped: int = 0,
        num_tokens: int = 0,
        balance: Balance = _FRESH,
    ) -> None:
        self.num_tokens = num_tokens
        """Tokens of texts that the encoder has read in the run, over all ranks."""
        self.auto_weights = AutoWeights(job, balance=balance)
        self.waits_for_device = False
        """Whether each phase of a step ends when the device has done its work, so that its seconds
        are its own; for measuring."""
        self.padding = Padding()
        """Of what this rank has read in the stage."""
        self.guard = Guard(job, limit=job.config.train.max_skipped, num_skipped=num_skipped)
        self._job = job
        self._record = record
        self._save = save
        self._validate = validate
        self._pending: tuple[StepPlan, StepRecord, GlobalGradient] | None = None
        """The last step, where the host has not asked yet whether it was skipped."""

    def run(self, stage: Stage, *, done: int, stop: StopRequest) -> str:
        """Trains ``stage`` from step ``done`` + 1 to its end, or until validation ends it.

        Returns:
            Why the run stops (``preempted`` or ``stopped``), or an empty string. Either way the
            last step is saved, or being saved.

        Raises:
            NonFiniteError: too many steps in a row were skipped; the last one is saved too.
        """
        job, config, world = self._job, self._job.config, self._job.groups.world
        job.wire.train()
        shown: dict[str, str] = {}
        saving = 0.0
        self.padding = Padding()
        steps = range(done + 1, stage.num_steps + 1)
        ahead = Prefetcher(
            lambda step: prepare(job, stage.plan(step)), steps, depth=config.data.prefetch
        )
        bar = tqdm(
            steps,
            desc=f"stage {stage.name}",
            initial=done,
            total=stage.num_steps,
            disable=True if world.rank else None,
        )
        with ahead, bar:
            for step in bar:
                start = time.perf_counter()
                prepared = ahead.next()
                waited = time.perf_counter() - start
                record = self.step(prepared.plan, prepared)
                record.waited(waited)
                self.padding += prepared.padding
                record.seconds["save"] = saving
                self._record(record)
                saving = 0.0 if record.is_logged else saving
                is_last = step == stage.num_steps
                verdict = self._validate(stage.name, step, is_last=is_last)
                if verdict.ends_stage:
                    self.settle()
                    if not record.is_logged:
                        record.ends_stage()
                        self._record(record)
                if record.progress or verdict.progress:
                    shown |= record.progress | verdict.progress
                    bar.set_postfix(shown)
                reason = stop.agreed(world)
                # Every rank has made a step by now.
                job.groups.expect_steps()
                exhausted = self.guard.exhausted()
                interval = config.checkpoint.interval
                is_due = is_last or (interval and step % interval == 0)
                if is_due or verdict.is_best or verdict.ends_stage or reason or exhausted:
                    self.settle()
                    start = time.perf_counter()
                    self._save(stage.name, step)
                    saving += time.perf_counter() - start
                if exhausted:
                    raise NonFiniteError(exhausted)
                if reason or verdict.ends_stage:
                    return reason
        return ""

    def step(self, plan: StepPlan, prepared: PreparedStep | None = None) -> StepRecord:
        """One optimizer step over the whole global batch, or none where it is not finite.

        Args:
            prepared: the same step, where it was laid out before.
        """
        job = self._job
        start = time.perf_counter()
        # Dropout, where there is any, is a function of the step, so that a resume repeats it.
        torch.manual_seed(plan.dropout_seed(job.groups.rank))
        balancing = self.auto_weights.is_due(plan)
        configured, plan = plan, self.auto_weights.applied(plan)
        laid_out = prepare(job, plan) if prepared is None else prepared
        record = StepRecord(job, plan, laid_out, waits=self.waits_for_device)
        record.seconds["data"] += laid_out.seconds if prepared is None else 0.0
        loss = torch.zeros((), device=job.device)
        for number, micro_batch in enumerate(laid_out.micro_batches, start=1):
            for unit in job.units.values():
                unit.set_sync(number == len(laid_out.micro_batches))
            part = self._forward(plan, record, micro_batch)
            with record.timed_backward():
                part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        record.pull_back()
        with record.timed("reduce"):
            gradient = global_gradient(job.units, job.unit_names, loss, job.groups.world)
            factor = clip_factor(gradient.norm, job.config.optim.max_grad_norm)
        # Before this step's optimizer, so that a skipped step is looked into with its own weights.
        self.settle()
        # Off log steps the device itself skips what is not finite; the host hears of it later.
        if record.needs_host or not all(unit.can_skip for unit in job.units.values()):
            if gradient.is_finite:
                with record.updating(), record.timed("optimizer"):
                    for unit in job.units.values():
                        unit.step(plan.rates, factor)
            self._judge(plan, record, gradient)
        else:
            with record.timed("optimizer"):
                for unit in job.units.values():
                    unit.step(plan.rates, factor, finite=gradient.finite)
            self._pending = (plan, record, gradient)
        for unit in job.units.values():
            unit.zero_grad()
        if balancing:
            self.auto_weights.update(configured, record)
        record.finish(gradient, factor, seconds=time.perf_counter() - start)
        return record

    def settle(self) -> None:
        """Says of the last step whether it was skipped, where that has not been asked yet. All
        ranks must call. Its row is late by a step then, and only then there is one."""
        if self._pending is not None:
            plan, record, gradient = self._pending
            self._pending = None
            self._judge(plan, record, gradient)
            if record.is_logged:
                self._record(record)
                for unit in self._job.units.values():
                    # Looking into it was a forward without a backward.
                    unit.put_away()

    def _judge(self, plan: StepPlan, record: StepRecord, gradient: GlobalGradient) -> None:
        if gradient.is_finite:
            self.guard.passed()
        else:
            self.guard.skipped(plan, record, gradient)
            record.skipped(self.guard.reason)

    def _forward(self, plan: StepPlan, record: StepRecord, micro_batch: PreparedBatch) -> Tensor:
        """The loss of a micro-batch: every hosted decoder reads its part."""
        job, config = self._job, self._job.config
        batch = micro_batch.batch
        record.begin(batch)
        self.num_tokens += micro_batch.num_tokens
        with record.timed("encoder"):
            latents = job.latents(batch, micro_batch.texts)
        record.watch(latents)
        losses = []
        for name, texts in micro_batch.parts.items():
            before = record.before()
            own = texts.own
            with record.timed("decoders"):
                wire = job.inject(name, latents, own)
                measured = measure(
                    job, name, batch, own, wire, names=record.names, k=plan.k, texts=texts
                )
            normalised = record.add(name, measured, latents, before)
            loss = weighted(normalised, plan.weights, decoder_weight=config.decoders[name].weight)
            # The backend averages over the group; see distributed.exchange.scale_gradient.
            losses.append(job.groups.decoder(name).size * loss)
        return torch.stack(losses).sum()
