"""One decoder's objectives on its part of a micro-batch.

All but reconstruction and continuation come of a single forward of the student, and of one of the
teacher where it is needed.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from latentwire.config import OBJECTIVES, Config, ObjectivesConfig
from latentwire.data.batch import PromptBatch
from latentwire.data.loader import DecoderBatch, GlobalBatch
from latentwire.data.moving import placed
from latentwire.data.part_texts import PartTexts, Weighted
from latentwire.data.spans import Spans
from latentwire.decoders.answered import Answered
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.distributed.assembly import Job
from latentwire.objectives import alignment, distillation, reconstruction, row_chunks, tokens
from latentwire.training.teaching import Taught, teach
from latentwire.wire.unit import Injection

OF_THE_ANSWER = ("tf", "first", "kce")
"""Always measured: they cost nothing beside the student's forward."""
_OWN_FORWARD = ("ae", "continuation")
_OF_VECTORS = ("latent_align", "manifold", "scale_l2")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one decoder made of its part."""

    sums: dict[str, Tensor]
    """Each objective summed over this part's positions; differentiable."""
    first_right: Tensor
    """Answers whose first token is the decoder's own choice."""
    num_tokens: int
    """Supervised tokens of this part."""
    wire: Injection
    """What the decoder read; gradient queries end at its ``outputs``."""
    own: DecoderBatch
    """The part it was measured on."""


def wanted(config: Config, *, with_norms: bool) -> set[str]:
    """Objectives that a step measures: the trained ones, and for gradient norms all others that
    cost no further forward of the student, or those named in the configuration."""
    weights = config.objectives.weights
    found = {*OF_THE_ANSWER, *(name for name, weight in weights.items() if weight > 0)}
    if with_norms:
        cheap = [name for name in OBJECTIVES if name not in (*_OWN_FORWARD, "span")]
        found |= set(config.diagnostics.grad_diag_components or cheap)
    if not config.adapter.use_soft_prompt:
        found -= set(_OF_VECTORS)
    if not config.gist.use_gist_head:
        found.discard("gist")
    return found


def measure(
    job: Job,
    name: str,
    batch: GlobalBatch,
    own: DecoderBatch,
    wire: Injection,
    *,
    names: Collection[str],
    k: int,
    texts: PartTexts | None = None,
) -> Measured:
    """Reads the wire with decoder ``name`` and takes every objective's sum.

    Args:
        own: the part of ``batch`` this rank's decoder reads.
        wire: what the decoder reads for it.
        names: objectives to measure.
        k: answer tokens under ``kce``.
        texts: of the part, where they were laid out before.
    """
    wire = wire.apart()
    texts = job.part_texts(name, batch, own) if texts is None else texts
    part = _Part(job, name, texts, wire)
    config, prompt = job.config.objectives, own.latents_prompt.to(job.device)
    decoder = job.decoders[name]
    layers: tuple[int, ...] = ()
    if "state" in names:
        layers = config.state_layers or tuple(range(1, decoder.num_layers + 1))
    of_cache = "span" in names and job.config.adapter.use_deep_prefix
    said = decoder.answer(prompt, wire, layers=layers, with_prefixes=of_cache)
    taught: Taught | None = None
    if {"kd", "state"} & set(names):
        taught = teach(job, name, batch, texts, names=names, layers=layers)
    sums, right = _of_the_answer(said, taught, prompt, config, names, k=k)
    others: dict[str, Callable[[], Tensor]] = {
        "span": lambda: part.span(prompt, said),
        "latent_align": part.latent_align,
        "manifold": part.manifold,
        "scale_l2": part.scale_l2,
        "gist": part.gist,
        "ae": part.ae,
    }
    if batch.draws.text_share is not None:
        others["continuation"] = part.continuation
    sums |= {key: take() for key, take in others.items() if key in names}
    return Measured(
        sums=sums, first_right=right, num_tokens=len(prompt.targets), wire=wire, own=own
    )


def _of_the_answer(
    said: Answered,
    taught: Taught | None,
    prompt: PromptBatch,
    config: ObjectivesConfig,
    names: Collection[str],
    *,
    k: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """What is always measured, and those of ``kd`` and ``state`` that are in ``names``; and how
    many answers have their first token right."""
    place = prompt.target_place

    def per_row(logits: Tensor, rows: slice) -> dict[str, Tensor]:
        targets = prompt.targets[rows]
        found = {
            "losses": tokens.token_losses(logits, targets),
            "right": tokens.is_right(logits.detach(), targets),
        }
        if "kd" in names:
            assert taught is not None
            found["kd"] = taught.kd_rows(logits, rows, temperature=config.kd_temperature)
        return found

    found = row_chunks.of_answer(said, per_row)
    sums = {
        "tf": tokens.tf(found["losses"]),
        "first": tokens.first(found["losses"], place),
        "kce": tokens.kce(found["losses"], place, k=k),
    }
    if "kd" in names:
        sums["kd"] = distillation.counted(found["kd"], place=place, positions=config.kd_positions)
    if "state" in names:
        assert taught is not None and taught.live is not None
        assert said.states is not None and taught.live.states is not None
        sums["state"] = distillation.state(said.states, taught.live.states)
    return sums, (found["right"] & (place == 0)).sum()


class _Part:
    """The objectives of a part that are about its texts: summed over the examples that read each,
    so that no sum depends on which rank reads what."""

    def __init__(self, job: Job, name: str, texts: PartTexts, wire: Injection) -> None:
        self.job = job
        self._decoder = job.decoders[name]
        self._texts, self._wire = texts, wire
        self._readers = placed(texts.own.readers, job.device)
        config = job.config
        self._begin = int(config.adapter.use_frame)
        self._end = wire.vectors.shape[1] - self._begin
        # Behind begin and the deep prefix's own positions.
        self._first = self._begin + config.adapter.deep_prefix_len
        self._num_private = config.wire.latent_private_len

    def span(self, prompt: PromptBatch, said: Answered) -> Tensor:
        """What stands at each latent's position and what the decoder makes of its text: the mean
        over the soft prompt's vectors and the deep prefix's keys and values, as there are."""
        parts = []
        if self.job.config.adapter.use_soft_prompt:
            parts.append(self._span_of_vectors())
        if said.prefixes is not None:
            parts.append(self._span_of_cache(prompt, said.prefixes))
        return torch.stack(parts).mean()

    def _spans(self, num_spans: int | None = None) -> Spans:
        return self._texts.spans(num_spans).to(self.job.device)

    def _span_of_vectors(self) -> Tensor:
        spans, layer = self._spans(), self.job.config.objectives.span_layer
        states = self._decoder.states(spans.ids, spans.mask, layer=layer, is_full=spans.is_full)
        vectors = self._wire.vectors[:, self._first + self._num_private : self._end]
        return self._over_readers(alignment.span(vectors, states, spans.latent))

    def _span_of_cache(self, prompt: PromptBatch, found: list[tuple[Tensor, Tensor]]) -> Tensor:
        num_slots = self.job.config.adapter.deep_prefix_len
        spans = self._spans(num_slots or None)
        text = self._decoder.keys_and_values(spans.ids, spans.mask, is_full=spans.is_full)
        first = self._begin if num_slots else self._first + self._num_private
        num_slots = num_slots or self._end - first
        # Where each prefix holds the slots, and which wire they are of.
        place = (prompt.prefix_soft == 0).int().argmax(1)[:, None]
        place = place + first + torch.arange(num_slots, device=place.device)
        place = place.clamp(max=prompt.prefix_soft.shape[1] - 1)[..., None]
        latent = spans.latent[prompt.prefix_soft_row]
        distances = [
            alignment.span(
                own.gather(1, place.expand(-1, -1, own.shape[-1])),
                meant[prompt.prefix_soft_row],
                latent,
            )
            for own_layer, text_layer in zip(found, text, strict=True)
            for own, meant in zip(own_layer, text_layer, strict=True)
        ]
        return (torch.stack(distances).mean(0) * prompt.prefix_readers).sum()

    def latent_align(self) -> Tensor:
        vectors, mask = self._soft_prompt()
        return self._over_readers(alignment.latent_align(vectors, mask, self._decoder.inputs.whole))

    def manifold(self) -> Tensor:
        vectors, mask = self._soft_prompt()
        mean, std = _statistics(self._decoder)
        return self._over_readers(alignment.manifold(vectors, mask, mean, std))

    def scale_l2(self) -> Tensor:
        """Of the adapter's scale, which is the size of any of its vectors."""
        config = self.job.config.adapter
        size = self._wire.vectors[0, self._first].float().square().mean().sqrt()
        scale = (size / self._decoder.inputs.rms).log()
        return alignment.scale_l2(scale, config.init_scale) * self._readers.sum()

    def gist(self) -> Tensor:
        wire = self._wire
        assert wire.gist is not None and wire.gist_scale is not None
        targets, mask = (
            part.to(self.job.device, non_blocking=True) for part in self._texts.gist_targets()
        )
        losses, _ = reconstruction.gist(
            wire.gist, targets, mask, self._decoder.inputs.whole, wire.gist_scale
        )
        return self._over_readers(losses)

    def ae(self) -> Tensor:
        return reconstruction.ae(self._written(self._texts.repeated()))

    def continuation(self) -> Tensor:
        return reconstruction.continuation(self._written(self._texts.continued()))

    def _written(self, laid_out: Weighted | None) -> Tensor:
        """The decoder's loss at each token it writes, times how often that counts."""
        if laid_out is None:
            return self._wire.vectors.sum()[None] * 0
        prompt = laid_out[0].to(self.job.device)
        weights = laid_out[1].to(self.job.device, non_blocking=True)
        said = self._decoder.answer(prompt, self._wire)
        return row_chunks.token_scores(said, prompt.targets)[0] * weights

    def _soft_prompt(self) -> tuple[Tensor, Tensor]:
        """The adapter's vectors [rows, slots, hidden], and which of them stand for a latent that
        is a wire's own and kept."""
        vectors = self._wire.vectors[:, self._first : self._end]
        mask = torch.zeros(vectors.shape[:2], dtype=torch.bool)
        mask[:, : self._num_private] = True
        for row, keep in enumerate(self._texts.kept()):
            mask[row, self._num_private :][: len(keep)] = torch.tensor(keep, dtype=torch.bool)
        return vectors, mask.to(vectors.device, non_blocking=True)

    def _over_readers(self, values: Tensor) -> Tensor:
        """[rows] -> their sum over the examples that read each."""
        return (values * self._readers).sum()


_STATISTICS: WeakKeyDictionary[FrozenDecoder, tuple[Tensor, Tensor]] = WeakKeyDictionary()


def _statistics(decoder: FrozenDecoder) -> tuple[Tensor, Tensor]:
    """Of the input embeddings, which never change."""
    if decoder not in _STATISTICS:
        _STATISTICS[decoder] = alignment.embedding_statistics(decoder.inputs.whole)
    return _STATISTICS[decoder]


def weighted(
    normalised: Mapping[str, Tensor], weights: Mapping[str, float], *, decoder_weight: float
) -> Tensor:
    """One decoder's loss: its normalised objectives by weight."""
    parts = [weights[name] * value for name, value in normalised.items() if weights[name] > 0]
    # Continuation alone has nothing to say in a step where no text is left.
    parts = parts or [0.0 * value for value in normalised.values()]
    return decoder_weight * torch.stack(parts).sum()
