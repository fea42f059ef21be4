"""What a step knows of its text teachers: read now, or looked up where that was kept."""

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from latentwire.data.loader import GlobalBatch
from latentwire.data.part_texts import PartTexts
from latentwire.decoders.answered import Answered
from latentwire.decoders.teacher import Kept, read_text
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
        return distillation.kd_rows(logits, self.live.logits_of(rows), temperature=temperature)


def teach(
    job: Job,
    name: str,
    batch: GlobalBatch,
    texts: PartTexts,
    *,
    names: Collection[str],
    layers: tuple[int, ...],
) -> Taught:
    """What decoder ``name`` says after the texts of its part of ``batch``. Ranks that hold it
    together must all call.

    Args:
        texts: of that part.
        names: objectives that are measured, ``kd`` or ``state`` among them.
        layers: whose states ``state`` wants.
    """
    examples = [batch.examples[index] for index in texts.own.examples]
    cache = job.teachers.get(name) if "kd" in names else None
    kept = None if cache is None else cache.find(examples)
    # Ranks that hold a decoder together read with it together, or not at all.
    if cache is not None and not job.decoders[name].all_agree(kept is not None):
        kept = None
        cache.num_live += len(examples)
    live = None
    if "state" in names or kept is None:
        live = read_text(job.decoders[name], texts.text_prompt(), layers=layers)
        if cache is not None and kept is None:
            # In the same form, so that no step's loss is of another kind.
            kept = cache.form.of(live.logits)
    return Taught(live=live, kept=kept)
