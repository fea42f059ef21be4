"""What one step measured, and the diagnostics rows made of it at log steps."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from latentwire.config import OBJECTIVES
from latentwire.diagnostics.gradients import objective_norms
from latentwire.distributed.assembly import Job
from latentwire.training.objectives import Measured, wanted
from latentwire.training.stages import StepPlan

_REDUCED = (*OBJECTIVES, "first_acc")


class StepRecord:
    """Collects one step's values on the device; nothing is moved or reduced before a log step.

    Args:
        counts: per hosted decoder, what each objective is divided by.
        balancing: the step's gradient norms are wanted for more than the record.
    """

    def __init__(
        self,
        job: Job,
        plan: StepPlan,
        *,
        counts: Mapping[str, Mapping[str, int]],
        balancing: bool = False,
    ) -> None:
        self.stage, self.step = plan.stage, plan.step
        self.progress: dict[str, str] = {}
        """Postfix of the progress bar, at log steps."""
        self._job = job
        self._plan = plan
        self._counts = counts
        diagnostics = job.config.diagnostics
        interval = diagnostics.grad_diag_interval
        # On these steps every objective is measured, whatever its weight.
        self._balancing = balancing
        self.with_norms = balancing or (bool(interval) and plan.step % interval == 0)
        self.names = wanted(job.config, with_norms=self.with_norms)
        """Objectives that this step measures."""
        # A stage's last step always has a row: it is where the stage ended.
        at_interval = plan.step % diagnostics.log_interval == 0
        self.is_logged = self.with_norms or at_interval or plan.is_last
        self._sums: dict[str, dict[str, Tensor]] = {name: {} for name in job.decoders}
        self._squares: dict[str, dict[str, Tensor]] = {name: {} for name in job.decoders}
        self._num_tokens = dict.fromkeys(job.decoders, 0)
        self._norm = torch.zeros(())
        self._seconds = 0.0
        self._skipped = False

    def add(self, name: str, measured: Measured) -> dict[str, Tensor]:
        """Takes one micro-batch of one decoder; returns its objectives, normalised over the
        whole global batch."""
        counts = self._counts[name]
        normalised = {key: value / max(1, counts[key]) for key, value in measured.sums.items()}
        sums = self._sums[name]
        for key, value in normalised.items():
            sums[key] = sums.get(key, 0) + value.detach()
        right = measured.first_right / counts["first"]
        sums["first_acc"] = sums.get("first_acc", 0) + right
        self._num_tokens[name] += measured.num_tokens
        if self.with_norms:
            squares = self._squares[name]
            components = self._job.config.diagnostics.grad_diag_components
            named = components if components and not self._balancing else normalised
            asked = {key: value for key, value in normalised.items() if key in named}
            for key, value in objective_norms(asked, measured.wire.ends).items():
                squares[key] = squares.get(key, 0) + value.square()
        return normalised

    def finish(self, norm: Tensor, *, skipped: bool, seconds: float) -> None:
        """Takes the step's global gradient norm, whether it was skipped, and its duration."""
        self._norm, self._skipped, self._seconds = norm, skipped, seconds
        self.is_logged = self.is_logged or skipped

    def grad_squares(self) -> dict[str, float]:
        """Squared gradient norms by objective, over the decoders this rank hosts."""
        found: dict[str, float] = {}
        for squares in self._squares.values():
            for key, square in squares.items():
                found[key] = found.get(key, 0.0) + float(square)
        return found

    def bad_objectives(self) -> dict[str, list[str]]:
        """Trained objectives of this rank that are not finite, by decoder."""
        found = {}
        for name, sums in self._sums.items():
            bad = [k for k, v in self._plan.trained(sums).items() if not torch.isfinite(v)]
            if bad:
                found[name] = sorted(bad)
        return found

    def rows(self) -> list[dict[str, Any]]:
        """One row per hosted decoder. Reduces over groups: all ranks call, at log steps only."""
        return [self._row(name) for name in self._job.decoders]

    def _row(self, name: str) -> dict[str, Any]:
        job, sums = self._job, self._sums[name]
        local = {key: float(value) for key, value in sums.items()}
        reduced = torch.tensor([local.get(key, 0.0) for key in _REDUCED], dtype=torch.float64)
        dist.all_reduce(reduced, group=job.groups.decoder(name).bookkeeping)
        values = dict(zip(_REDUCED, reduced.tolist(), strict=True))
        own_tokens = self._num_tokens[name]
        row = {
            "stage": self.stage,
            "step": self.step,
            "rank": job.groups.rank,
            "decoder": name,
            "mode": self._plan.mode,
            **{key: values[key] if key in sums else None for key in _REDUCED},
            "tf_local": local["tf"] * self._counts[name]["tf"] / max(1, own_tokens),
            "num_tokens_local": own_tokens,
            "keep_prob": self._plan.draws.keep_prob,
            "text_share": self._plan.draws.text_share,
            "K": self._plan.k,
        }
        for key, square in self._squares[name].items():
            row[f"grad_{key}"] = float(square.sqrt())
        return row | {
            "grad_norm": float(self._norm),
            "skipped": self._skipped,
            **{f"weight_{k}": w for k, w in self._plan.weights.items() if w > 0},
            **{f"lr_{group}": rate for group, rate in self._plan.rates.items()},
            "num_examples": len(self._plan.examples),
            "sec_per_step": round(self._seconds, 6),
        }
