"""One decoder's objectives on its part of a micro-batch.

All but reconstruction and continuation come of a single forward of the student, and of one of the
teacher where it is needed.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from latentwire.config import OBJECTIVES, Config, ObjectivesConfig
from latentwire.data.batch import PromptBatch
from latentwire.data.loader import DecoderBatch, GlobalBatch
from latentwire.data.rewriting import (
    Written,
    continued,
    gist_targets,
    repeated,
    written_batch,
)
from latentwire.data.spans import Spans, decoder_spans
from latentwire.decoders.frozen import Answered, FrozenDecoder
from latentwire.distributed.assembly import Job
from latentwire.objectives import alignment, distillation, reconstruction, tokens
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
) -> Measured:
    """Reads the wire with decoder ``name`` and takes every objective's sum.

    Args:
        own: the part of ``batch`` this rank's decoder reads.
        wire: what the decoder reads for it.
        names: objectives to measure.
        k: answer tokens under ``kce``.
    """
    wire = wire.apart()
    part = _Part(job, name, batch, own, wire)
    config, prompt = job.config.objectives, own.latents_prompt.to(job.device)
    decoder = job.decoders[name]
    layers: tuple[int, ...] = ()
    if "state" in names:
        layers = config.state_layers or tuple(range(1, decoder.num_layers + 1))
    of_cache = "span" in names and job.config.adapter.use_deep_prefix
    said = decoder.answer(prompt, wire, layers=layers, with_prefixes=of_cache)
    losses = tokens.token_losses(said.logits, prompt.targets)
    sums = {
        "tf": tokens.tf(losses),
        "first": tokens.first(losses, prompt.target_place),
        "kce": tokens.kce(losses, prompt.target_place, k=k),
    }
    if {"kd", "state"} & set(names):
        examples = [batch.examples[i] for i in own.examples]
        taught = teach(job, name, examples, names=names, layers=layers)
        sums |= _distilled(said, taught, prompt.target_place, config, names)
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
    right = tokens.num_first_right(said.logits.detach(), prompt.targets, prompt.target_place)
    return Measured(
        sums=sums, first_right=right, num_tokens=len(prompt.targets), wire=wire, own=own
    )


def _distilled(
    said: Answered,
    taught: Taught,
    place: Tensor,
    config: ObjectivesConfig,
    names: Collection[str],
) -> dict[str, Tensor]:
    """Those of ``kd`` and ``state`` that are in ``names``; ``place`` is the targets'."""
    found = {}
    if "kd" in names:
        rows = taught.kd_rows(said.logits, slice(None), temperature=config.kd_temperature)
        found["kd"] = distillation.counted(rows, place=place, positions=config.kd_positions)
    if "state" in names:
        assert taught.live is not None
        assert said.states is not None and taught.live.states is not None
        found["state"] = distillation.state(said.states, taught.live.states)
    return found


class _Part:
    """The objectives of a part that are about its texts: summed over the examples that read each,
    so that no sum depends on which rank reads what."""

    def __init__(
        self, job: Job, name: str, batch: GlobalBatch, own: DecoderBatch, wire: Injection
    ) -> None:
        self.job = job
        self._decoder, self._prompts = job.decoders[name], job.prompts[name]
        self._batch, self._own, self._wire = batch, own, wire
        self._readers = torch.tensor(own.readers, device=job.device)
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
        tokenizer = self.job.tokenizer
        wires = [self._batch.wire(text, tokenizer) for text in self._own.texts]
        spans = decoder_spans(wires, tokenizer, self._prompts, num_spans=num_spans)
        return spans.to(self.job.device)

    def _span_of_vectors(self) -> Tensor:
        spans, layer = self._spans(), self.job.config.objectives.span_layer
        states = self._decoder.states(spans.ids, spans.mask, layer=layer)
        vectors = self._wire.vectors[:, self._first + self._num_private : self._end]
        return self._over_readers(alignment.span(vectors, states, spans.latent))

    def _span_of_cache(self, prompt: PromptBatch, found: list[tuple[Tensor, Tensor]]) -> Tensor:
        num_slots = self.job.config.adapter.deep_prefix_len
        spans = self._spans(num_slots or None)
        text = self._decoder.keys_and_values(spans.ids, spans.mask)
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
        readers = prompt.prefix_of.bincount(minlength=len(place))
        return (torch.stack(distances).mean(0) * readers).sum()

    def latent_align(self) -> Tensor:
        vectors, mask = self._soft_prompt()
        return self._over_readers(alignment.latent_align(vectors, mask, self._decoder.embeddings))

    def manifold(self) -> Tensor:
        vectors, mask = self._soft_prompt()
        mean, std = _statistics(self._decoder)
        return self._over_readers(alignment.manifold(vectors, mask, mean, std))

    def scale_l2(self) -> Tensor:
        """Of the adapter's scale, which is the size of any of its vectors."""
        config = self.job.config.adapter
        size = self._wire.vectors[0, self._first].float().square().mean().sqrt()
        scale = (size / self._decoder.embedding_rms).log()
        return alignment.scale_l2(scale, config.init_scale) * self._readers.sum()

    def gist(self) -> Tensor:
        wire = self._wire
        assert wire.gist is not None and wire.gist_scale is not None
        texts = [self._batch.texts[t] for t in self._own.texts]
        targets, mask = (
            part.to(self.job.device)
            for part in gist_targets(texts, self._prompts, gist_len=wire.gist.shape[1])
        )
        losses, _ = reconstruction.gist(
            wire.gist, targets, mask, self._decoder.embeddings, wire.gist_scale
        )
        return self._over_readers(losses)

    def ae(self) -> Tensor:
        num_tokens = self.job.config.objectives.ae_tokens
        texts = [
            repeated(self._batch, t, self._prompts, self.job.tokenizer, num_tokens=num_tokens)
            for t in self._own.texts
        ]
        return reconstruction.ae(self._written(texts))

    def continuation(self) -> Tensor:
        texts = [
            continued(self._batch, t, self._prompts, self.job.tokenizer) for t in self._own.texts
        ]
        return reconstruction.continuation(self._written(texts))

    def _written(self, texts: Sequence[Written]) -> Tensor:
        """The decoder's loss at each token it writes, times how often that counts."""
        laid_out = written_batch(
            self._batch,
            self._own,
            self._prompts,
            self.job.tokenizer,
            texts,
            never_none=self._decoder.ranks is not None,
        )
        if laid_out is None:
            return self._wire.vectors.sum()[None] * 0
        prompt, weights = laid_out[0].to(self.job.device), laid_out[1].to(self.job.device)
        logits = self._decoder.answer_logits(prompt, self._wire)
        return tokens.token_losses(logits, prompt.targets) * weights

    def _soft_prompt(self) -> tuple[Tensor, Tensor]:
        """The adapter's vectors [rows, slots, hidden], and which of them stand for a latent that
        is a wire's own and kept."""
        vectors = self._wire.vectors[:, self._first : self._end]
        mask = torch.zeros(vectors.shape[:2], dtype=torch.bool)
        mask[:, : self._num_private] = True
        for row, text in enumerate(self._own.texts):
            keep = self._batch.wire(text, self.job.tokenizer).keep or ()
            mask[row, self._num_private :][: len(keep)] = torch.tensor(keep, dtype=torch.bool)
        return vectors, mask.to(vectors.device)

    def _over_readers(self, values: Tensor) -> Tensor:
        """[rows] -> their sum over the examples that read each."""
        return (values * self._readers).sum()


_STATISTICS: WeakKeyDictionary[FrozenDecoder, tuple[Tensor, Tensor]] = WeakKeyDictionary()


def _statistics(decoder: FrozenDecoder) -> tuple[Tensor, Tensor]:
    """Of the input embeddings, which never change."""
    if decoder not in _STATISTICS:
        _STATISTICS[decoder] = alignment.embedding_statistics(decoder.embeddings)
    return _STATISTICS[decoder]


def weighted(
    normalised: Mapping[str, Tensor], weights: Mapping[str, float], *, decoder_weight: float
) -> Tensor:
    """One decoder's loss: its normalised objectives by weight."""
    parts = [weights[name] * value for name, value in normalised.items() if weights[name] > 0]
    # Continuation alone has nothing to say in a step where no text is left.
    parts = parts or [0.0 * value for value in normalised.values()]
    return decoder_weight * torch.stack(parts).sum()
