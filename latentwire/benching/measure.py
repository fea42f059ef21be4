"""Measures steps of a real trainer, in turn with the plain loop where that is asked for."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from latentwire.benching import machine, operations
from latentwire.benching.operations import Operations
from latentwire.benching.plain_loop import PlainLoop, largest_difference
from latentwire.checkpointing.best import Standing
from latentwire.config import Config, ConfigError
from latentwire.diagnostics.rank_stream import RankStream
from latentwire.diagnostics.stream import DiagnosticsStream
from latentwire.distributed.assembly import Job, assemble
from latentwire.distributed.groups import ProcessGroups
from latentwire.distributed.messages import gather_json
from latentwire.training import teacher_build
from latentwire.training.doctor import Doctor
from latentwire.training.frozen_check import FrozenCheck
from latentwire.training.identity import identities
from latentwire.training.joining import joined
from latentwire.training.preflight import Plan
from latentwire.training.records import PHASES, StepRecord, peak_memory, settle
from latentwire.training.reporting import Reporter
from latentwire.training.run_folder import prepare, record
from latentwire.training.saving import open_writer, place_at
from latentwire.training.signals import StopRequest
from latentwire.training.stage_c import open_source_for
from latentwire.training.stages import Stage, StepPlan
from latentwire.training.status import FILES
from latentwire.training.trainer import Trainer
from latentwire.training.validation import Validator


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is measured."""

    warmup: int = 2
    """Steps before anything is measured."""
    steps: int = 4
    """Steps of each block."""
    repeats: int = 3
    """Blocks; those of the plain loop come in turn with them."""
    plain: bool = False
    """Whether the plain loop runs too."""


@dataclass(kw_only=True)
class Measured:
    """What one rank has measured."""

    steps: list[float] = field(default_factory=list)
    """Seconds of a step, one for each block."""
    plain_steps: list[float] = field(default_factory=list)
    """The same of the plain loop."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds of each phase, a step's median over steps that were timed one phase after another."""
    timed_step: float = 0.0
    """Seconds of such a step."""
    save: float = 0.0
    """Seconds that training waits for a checkpoint."""
    differences: dict[str, float] = field(default_factory=dict)
    """Largest relative difference of an objective from the plain loop's, in the first step."""
    operations: Operations | None = None
    plain_operations: Operations | None = None
    peak: float = 0.0
    """Floating-point operations a second of the machine's matrix products."""
    memory: int = 0
    """Bytes at the peak, of the device or on a CPU of the process; before the plain loop ran."""
    padding: dict[str, float] = field(default_factory=dict)
    """Share of positions that are padding, by what is padded."""
    prepared: float = 0.0
    """Seconds spent before the first step on what all of them use: the teacher's cache."""


class _Block:
    """Some steps of a stage, as a stage that goes no further."""

    def __init__(self, stage: Stage, *, last: int) -> None:
        self.name, self.num_steps, self.plan = stage.name, last, stage.plan
        self.batch_size = stage.batch_size


def run(plan: Plan, settings: Settings, *, say: Callable[[str], None]) -> list[Measured] | None:
    """Measures on all ranks together.

    Returns:
        Every rank's, on rank 0; None elsewhere.
    """
    with joined(plan) as groups, StopRequest() as stop:
        if groups.rank == 0:
            prepare(plan, wipe=True)
            record(plan)
        own = _measure(plan, groups, settings, stop, say)
        gathered = gather_json(_as_tree(own), groups.world)
    return None if gathered is None else [_from_tree(tree) for tree in gathered]


def _measure(
    plan: Plan,
    groups: ProcessGroups,
    settings: Settings,
    stop: StopRequest,
    say: Callable[[str], None],
) -> Measured:
    config = plan.config
    found = Measured(peak=machine.matmul_peak(groups.device, _dtype(config)))
    say(f"matrix products reach {found.peak / 1e9:,.0f} GFLOP/s")
    job = assemble(config, groups)
    stage = Stage(config, "B", open_source_for(plan, "train"))
    frozen = FrozenCheck(job)
    is_taught = config.objectives.kd > 0
    if config.teacher.cache and is_taught:
        say("building the teachers' caches")
        start = time.perf_counter()
        reason = teacher_build.build(job, stage.examples(), fingerprints=frozen.before, stop=stop)
        _go_on(reason)
        found.prepared = time.perf_counter() - start
    bench = _Bench(plan, job, stage, stop, frozen)
    with bench.reporting():
        first = stage.plan(1)
        found.operations = operations.of_step(
            job, first, teacher=is_taught and not config.teacher.cache
        )
        say("warming up")
        plain = None
        ours = bench.first_step()
        bench.block(settings.warmup)
        found.memory = max(bench.memory, peak_memory(groups.device))
        if settings.plain:
            found.plain_operations = operations.of_plain_step(job, first, teacher=is_taught)
            plain = PlainLoop(job)
            found.differences = largest_difference(ours, plain.step(first))
        for number in range(settings.repeats):
            before = bench.done
            found.steps.append(bench.block(settings.steps) / settings.steps)
            say(f"block {number + 1}: {found.steps[-1]:.3f} s a step")
            if plain is not None:
                plans = [stage.plan(step) for step in range(before + 1, bench.done + 1)]
                found.plain_steps.append(_plain_seconds(plain, plans, job.device) / len(plans))
                say(f"  the plain loop: {found.plain_steps[-1]:.3f} s")
        found.phases, found.timed_step = bench.phases(settings.steps)
        found.padding = bench.padding()
        found.save = bench.save_seconds()
    return found


class _Bench:
    """A trainer whose steps are taken in blocks."""

    def __init__(
        self, plan: Plan, job: Job, stage: Stage, stop: StopRequest, frozen: FrozenCheck
    ) -> None:
        self.done = 0
        self.memory = 0
        """Bytes at the peak so far."""
        self._plan, self._job, self._stage, self._stop = plan, job, stage, stop
        self._frozen = frozen
        self._reporter: Reporter | None = None
        self._records: list[tuple[StepRecord, float]] = []
        self._trainer = Trainer(job, record=self._record, save=lambda stage, step: None)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Rows go to a stream as those of a run do."""
        plan, job = self._plan, self._job
        stream = RankStream(
            plan.diagnostics,
            run=plan.config.run.tag,
            groups=job.groups,
            settings=plan.config.diagnostics,
        )
        doctor = Doctor(job, [], stages=[self._stage])
        with Reporter(plan.run_folder, stream, doctor, stop=self._stop) as self._reporter:
            yield

    def first_step(self) -> dict[str, dict[str, float]]:
        """Takes one step; every decoder's objectives."""
        self.block(1)
        record, _ = self._records[-1]
        return record.reduced()

    def block(self, steps: int) -> float:
        """Takes steps as a run does; returns the seconds of all of them."""
        part, first = _Block(self._stage, last=self.done + steps), self.done
        self._records.clear()
        settle(self._job.device)
        start = time.perf_counter()
        _go_on(self._trainer.run(part, done=first, stop=self._stop))  # type: ignore[arg-type]
        settle(self._job.device)
        self.done += steps
        return time.perf_counter() - start

    def phases(self, steps: int) -> tuple[dict[str, float], float]:
        """Takes steps whose phases wait for the device, one after another.

        Returns:
            Medians over the steps: seconds of every phase and of ``diagnostics``, and of a step.
        """
        self._trainer.waits_for_device = True
        total = self.block(steps) / steps
        self._trainer.waits_for_device = False
        found = {
            phase: statistics.median(record.seconds.get(phase, 0.0) for record, _ in self._records)
            for phase in (*PHASES, "encoder_backward")
        }
        found["diagnostics"] = statistics.median(spent for _, spent in self._records)
        return found, total

    def padding(self) -> dict[str, float]:
        """Of what this rank has read in the last block."""
        shares = self._trainer.padding.shares().items()
        return {" ".join(dict.fromkeys(key)): share for key, share in shares}

    def save_seconds(self) -> float:
        """Saves the wire as it stands, twice; how long training waits for the second."""
        plan, job = self._plan, self._job
        decoders = identities(job, self._frozen.before)
        stream = DiagnosticsStream(
            plan.run_folder / FILES["validation"], run=plan.config.run.tag, world=job.groups.world
        )
        validator = Validator(job, [], stream=stream, standing=Standing())
        spent = 0.0
        with open_writer(plan, job, self._stop, decoders=decoders) as writer:
            for step in (self.done - 1, self.done):
                place = place_at([self._stage], "B", step, self._trainer, validator, health={})
                start = time.perf_counter()
                writer.save(place)
                spent = time.perf_counter() - start
                writer.wait()
        return spent

    def _record(self, record: StepRecord) -> None:
        assert self._reporter is not None
        settle(self._job.device)
        # A row begins the count anew.
        self.memory = max(self.memory, peak_memory(self._job.device))
        start = time.perf_counter()
        self._reporter.record(record)
        self._records.append((record, time.perf_counter() - start))


def _go_on(reason: str) -> None:
    """Raises ConfigError where there is a reason to stop: fewer steps would be taken for all."""
    if reason:
        raise ConfigError([f"{reason} by a signal; nothing was measured"])


def _plain_seconds(plain: PlainLoop, plans: Sequence[StepPlan], device: torch.device) -> float:
    settle(device)
    start = time.perf_counter()
    for plan in plans:
        plain.step(plan)
    settle(device)
    return time.perf_counter() - start


def _dtype(config: Config) -> torch.dtype:
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


def _as_tree(measured: Measured) -> dict[str, Any]:
    tree = dict(vars(measured))
    for key in ("operations", "plain_operations"):
        tree[key] = None if tree[key] is None else vars(tree[key])
    return tree


def _from_tree(tree: dict[str, Any]) -> Measured:
    for key in ("operations", "plain_operations"):
        tree[key] = None if tree[key] is None else Operations(**tree[key])
    return Measured(**tree)
