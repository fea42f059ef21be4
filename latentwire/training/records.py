"""What one step measured, and the diagnostics rows made of it at log steps."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from latentwire.config import OBJECTIVES
from latentwire.data.loader import GlobalBatch
from latentwire.diagnostics.gauges import UpdateProbe
from latentwire.diagnostics.gradients import norm_at, objective_gradients
from latentwire.diagnostics.pullback import MicroBatch, Norms, RandomState, Reading, part_norms
from latentwire.distributed.assembly import Job
from latentwire.distributed.gradients import GlobalGradient
from latentwire.training.objectives import Measured
from latentwire.training.preparation import PreparedStep, is_balancing, is_diagnosed
from latentwire.training.stages import StepPlan
from latentwire.wire.parts import PARTS, SHARED_UNIT, unit_name

_REDUCED = (*OBJECTIVES, "first_acc")
PHASES = ("data", "encoder", "decoders", "backward", "reduce", "optimizer", "save")
"""Parts of a step that are timed, in their order."""
NO_PARTS = "none"
"""Of ``diagnostics.grad_diag_units``: norms at the wire's ends only."""
BALANCED_PARTS = ("adapter", "deep_prefix")
"""Where automatic weights measure the objectives' gradients. Each is there whole and summed over a
global batch, so the norms do not depend on how ranks and micro-batches share it."""


class StepRecord:
    """Collects one step's values on the device; nothing is moved or reduced before a log step.

    Args:
        plan: with the weights that are trained with.
        prepared: the step, laid out.
        waits: each phase that is timed ends when the device has done its work.
    """

    def __init__(
        self, job: Job, plan: StepPlan, prepared: PreparedStep, *, waits: bool = False
    ) -> None:
        self.stage, self.step = plan.stage, plan.step
        self.progress: dict[str, str] = {}
        """Postfix of the progress bar, at log steps."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        """Of the host, by phase of the step: waiting for its batches is ``data``, and ``save`` is
        what was spent on saving since the row before."""
        self.skip_reason = ""
        """Why the step was skipped: objective, decoder and rank."""
        self._job = job
        self._plan = plan
        self._counts = prepared.counts
        self.padding = prepared.padding
        """How much of what this rank has read is padding."""
        self._waits = waits
        self._reached_at: float | None = None
        diagnostics = job.config.diagnostics
        # On steps with norms every objective is measured, whatever its weight.
        self._balancing = is_balancing(job.config, plan)
        self.with_norms = prepared.with_norms
        self._parts = _parts_wanted(job) if is_diagnosed(job.config, plan) else ()
        """Whose norms the row has."""
        self._pulls = bool(self._parts) or self._balancing
        self.names = prepared.names
        """Objectives that this step measures."""
        # A stage's last step always has a row: it is where the stage ended.
        at_interval = plan.step % diagnostics.log_interval == 0
        self.is_logged = self.with_norms or at_interval or plan.is_last
        self._sums: dict[str, dict[str, Tensor]] = {name: {} for name in job.decoders}
        self._squares: dict[str, dict[str, Tensor]] = {name: {} for name in job.decoders}
        self._num_tokens = dict.fromkeys(job.decoders, 0)
        self._kept: list[MicroBatch] = []
        self._norms: Norms = {}
        self._gradient: GlobalGradient | None = None
        self._factor = torch.ones(())
        self._step_seconds = 0.0
        self._skipped = False
        health = diagnostics.health_interval
        self.is_health_due = bool(health) and plan.step % health == 0
        """Whether the wire's health is measured after this step."""
        self.updates: dict[str, dict[str, tuple[float, float]]] = {}
        """How far the step moved this rank's share of each part, where its health is due."""

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Adds the time spent within it to ``seconds``."""
        start = self._now()
        yield
        self.seconds[what] += self._now() - start

    def watch(self, latents: Tensor) -> None:
        """Where phases are timed apart: the backward behind ``latents`` is the encoder's."""
        if self._waits and latents.requires_grad:
            latents.register_hook(self._reached)

    def _reached(self, gradient: Tensor) -> None:
        self._reached_at = self._now()

    @contextmanager
    def timed_backward(self) -> Iterator[None]:
        """As ``timed``; of latents that are watched, the encoder's part as a phase of its own."""
        self._reached_at = None
        with self.timed("backward"):
            yield
        if self._reached_at is not None:
            spent = self._now() - self._reached_at
            self.seconds["backward"] -= spent
            own = self.seconds.get("encoder_backward", 0.0)
            self.seconds["encoder_backward"] = own + spent

    def _now(self) -> float:
        if self._waits:
            settle(self._job.device)
        return time.perf_counter()

    def waited(self, seconds: float) -> None:
        """The step began so much earlier, with waiting for its batches."""
        self.seconds["data"] += seconds
        self._step_seconds += seconds

    def begin(self, batch: GlobalBatch) -> None:
        """A micro-batch starts: called before its encoder's forward."""
        if self._pulls:
            self._kept.append(MicroBatch(batch=batch, random=RandomState(self._job.device)))

    def before(self) -> RandomState | None:
        """What ``add`` wants to know of the time before the decoder's unit runs."""
        return RandomState(self._job.device) if self._pulls else None

    def add(
        self,
        name: str,
        measured: Measured,
        latents: Tensor | None = None,
        before: RandomState | None = None,
    ) -> dict[str, Tensor]:
        """Takes one micro-batch of one decoder; returns its objectives, normalised over the
        whole global batch.

        Args:
            latents: what the decoder's unit read.
        """
        counts = self._counts[name]
        normalised = {key: value / max(1, counts[key]) for key, value in measured.sums.items()}
        sums = self._sums[name]
        for key, value in normalised.items():
            sums[key] = sums.get(key, 0) + value.detach()
        right = measured.first_right / counts["first"]
        sums["first_acc"] = sums.get("first_acc", 0) + right
        self._num_tokens[name] += measured.num_tokens
        if self.with_norms:
            components = self._job.config.diagnostics.grad_diag_components
            named = components if components and not self._balancing else normalised
            asked = {key: value for key, value in normalised.items() if key in named}
            gradients = objective_gradients(asked, measured.wire)
            squares, num_ends = self._squares[name], len(measured.wire.ends)
            for key, found in gradients.items():
                norm = norm_at(found[:num_ends])
                square = torch.zeros((), device=self._job.device) if norm is None else norm.square()
                squares[key] = squares.get(key, 0) + square
            if before is not None and latents is not None:
                self._kept[-1].readings[name] = Reading(
                    own=measured.own, latents=latents, gradients=gradients, random=before
                )
        return normalised

    def pull_back(self) -> None:
        """Takes the norms in the trained parts, where they are due. All ranks must call, between
        the step's backward and its optimizer."""
        if self._kept:
            asked = [key for key in OBJECTIVES if key in next(iter(self._squares.values()))]
            parts = {*self._parts, *(BALANCED_PARTS if self._balancing else ())}
            self._norms = part_norms(self._job, self._kept, asked, sorted(parts))
            self._kept = []

    @contextmanager
    def updating(self) -> Iterator[None]:
        """The optimizer moves within it."""
        probe = UpdateProbe(self._job.units) if self.is_health_due else None
        yield
        if probe is not None:
            self.updates = probe.squares()

    @property
    def plan(self) -> StepPlan:
        """What the step did."""
        return self._plan

    def finish(self, gradient: GlobalGradient, factor: Tensor, *, seconds: float) -> None:
        """Takes the step's global gradient, what clipping multiplied it by, and its duration."""
        self._gradient, self._factor, self._step_seconds = gradient, factor, seconds

    @property
    def needs_host(self) -> bool:
        """Whether the step's values are read on the host when it is done."""
        return self.is_logged or self.is_health_due

    def ends_stage(self) -> None:
        """The step was its stage's last after all: it has a row. Its health has been told."""
        self.is_logged, self.is_health_due = True, False

    def skipped(self, reason: str) -> None:
        """The step was skipped, for a reason: it has a row."""
        self._skipped, self.skip_reason, self.is_logged = True, reason, True

    @property
    def gradient(self) -> GlobalGradient:
        """The step's global gradient, before clipping."""
        assert self._gradient is not None
        return self._gradient

    @property
    def examples_per_second(self) -> float:
        return len(self._plan.examples) / self._step_seconds

    def balanced_squares(self) -> dict[str, float]:
        """Squared norms by objective of the gradients in the parts that weights are balanced at,
        over the decoders this rank speaks for: summed over all ranks, each decoder is there once.
        """
        found: dict[str, float] = {}
        for name, norms in self._norms.items():
            if self._job.groups.decoder(name).rank == 0:
                for key, by_part in norms.items():
                    squares = (float(by_part[p]) ** 2 for p in BALANCED_PARTS if p in by_part)
                    found[key] = found.get(key, 0.0) + sum(squares)
        return found

    def bad_objectives(self) -> dict[str, list[str]]:
        """Trained objectives of this rank that are not finite, by decoder."""
        found = {}
        for name, sums in self._sums.items():
            bad = [k for k, v in self._plan.trained(sums).items() if not torch.isfinite(v)]
            if bad:
                found[name] = sorted(bad)
        return found

    def reduced(self) -> dict[str, dict[str, float]]:
        """Every decoder's values over the whole global batch, by decoder, on every rank. All ranks
        must call, at log steps only."""
        names = [spec.decoder for spec in self._job.groups.topology.groups]
        table = torch.zeros(len(names), len(_REDUCED), dtype=torch.float64)
        for name, sums in self._sums.items():
            for key, value in sums.items():
                table[names.index(name), _REDUCED.index(key)] = float(value)
        world = self._job.groups.world
        if world.size > 1:
            dist.all_reduce(table, group=world.bookkeeping)
        return {
            name: dict(zip(_REDUCED, values, strict=True))
            for name, values in zip(names, table.tolist(), strict=True)
        }

    def rows(
        self, reduced: Mapping[str, Mapping[str, float]] | None = None
    ) -> list[dict[str, Any]]:
        """One row per hosted decoder, at log steps.

        Args:
            reduced: what ``reduced`` returned; None calls it, so all ranks must call.
        """
        reduced = self.reduced() if reduced is None else reduced
        memory = peak_memory(self._job.device)
        return [self._row(name, reduced[name], memory) for name in self._job.decoders]

    def _row(self, name: str, values: Mapping[str, float], memory: int) -> dict[str, Any]:
        job, sums = self._job, self._sums[name]
        own_tokens = self._num_tokens[name]
        row: dict[str, Any] = {
            "stage": self.stage,
            "step": self.step,
            "rank": job.groups.rank,
            "decoder": name,
            "mode": self._plan.mode,
            **{key: values[key] if key in sums else None for key in _REDUCED},
            **{f"{key}_part": float(value) for key, value in sums.items()},
            "tf_local": float(sums["tf"]) * self._counts[name]["tf"] / max(1, own_tokens),
            "num_tokens": self._counts[name]["tf"],
            "num_tokens_local": own_tokens,
            **self.padding.fields(name),
            "keep_prob": self._plan.draws.keep_prob,
            "text_share": self._plan.draws.text_share,
            "K": self._plan.k,
        }
        for key, square in self._squares[name].items():
            row[f"grad_{key}"] = float(square.sqrt())
        for key, norms in self._norms.get(name, {}).items():
            row |= {f"grad_{key}/{p}": float(n) for p, n in norms.items() if p in self._parts}
        row |= self._reduced_norms(name)
        row |= {
            "skipped": self._skipped,
            **{f"weight_{k}": w for k, w in self._plan.weights.items() if w > 0},
            **{f"lr_{group}": rate for group, rate in self._plan.rates.items()},
            "num_examples": len(self._plan.examples),
            "sec_per_step": round(self._step_seconds, 6),
            "step_seconds": round(self._step_seconds, 6),
            **{f"{what}_seconds": round(spent, 6) for what, spent in self.seconds.items()},
            "peak_memory_bytes": memory,
        }
        return row | ({"skip_reason": self.skip_reason} if self.skip_reason else {})

    def _reduced_norms(self, name: str) -> dict[str, float]:
        """The whole gradient's norms, before and after clipping, over all of it and by part."""
        assert self._gradient is not None
        factor = float(self._factor)
        norms = {"": float(self._gradient.norm)}
        for unit in (SHARED_UNIT, unit_name(name)):
            squares = self._gradient.part_squares[unit]
            there = self._job.trained_parts[unit]
            norms |= {f"/{part}": float(squares[part]) ** 0.5 for part in there}
        before = {f"grad_norm{part}": norm for part, norm in norms.items()}
        return before | {f"grad_norm_clipped{part}": norm * factor for part, norm in norms.items()}


def _parts_wanted(job: Job) -> Sequence[str]:
    asked = job.config.diagnostics.grad_diag_units
    if asked == (NO_PARTS,):
        return ()
    return asked or PARTS


def settle(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Bytes, of the device since the row before; on a CPU the process's largest so far."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    # Kibibytes, but on macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
