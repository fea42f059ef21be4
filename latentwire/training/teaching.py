"""What a step knows of its text teachers: read now, or looked up where that was kept."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from latentwire.data.example import Example
from latentwire.decoders.frozen import Answered
from latentwire.decoders.teacher import Kept, teacher
from latentwire.distributed.assembly import Job
from latentwire.objectives import distillation


@dataclass(frozen=True, kw_only=True)
class Taught:
    """One decoder's text teacher at the answer positions of its part of a micro-batch."""

    live: Answered | None
    """What it has said now; None where nothing asked for more than what was kept."""
    kept: Kept | None
    """In the form of its cache; None where it has none."""

    def kd_rows(self, logits: Tensor, rows: slice, *, temperature: float) -> Tensor:
        """``kd`` of each of some positions.

        Args:
            logits: the student's [rows, vocabulary].
            rows: which positions these are.
        """
        if self.kept is not None:
            own = self.kept.rows(rows)
            return distillation.kd_cached(
                logits, own.ids, own.log_probs, own.log_tail, temperature=temperature
            )
        assert self.live is not None
        return distillation.kd_rows(logits, self.live.logits[rows], temperature=temperature)


def teach(
    job: Job,
    name: str,
    examples: Sequence[Example],
    *,
    names: Collection[str],
    layers: tuple[int, ...],
) -> Taught:
    """What decoder ``name`` says after the texts of ``examples``. Ranks that hold it together must
    all call.

    Args:
        names: objectives that are measured, ``kd`` or ``state`` among them.
        layers: whose states ``state`` wants.
    """
    cache = job.teachers.get(name) if "kd" in names else None
    kept = None if cache is None else cache.find(examples)
    # Ranks that hold a decoder together read with it together, or not at all.
    if cache is not None and not job.decoders[name].all_agree(kept is not None):
        kept = None
        cache.num_live += len(examples)
    live = None
    if "state" in names or kept is None:
        live = teacher(job.decoders[name], job.prompts[name], examples, layers=layers)
        if cache is not None and kept is None:
            # In the same form, so that no step's loss is of another kind.
            kept = cache.form.of(live.logits)
    return Taught(live=live, kept=kept)
