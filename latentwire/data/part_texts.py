"""The texts of one decoder's part of a micro-batch, laid out for the objectives that read them.

Nothing here depends on trained weights, so it can be made before the step that needs it, in
another thread. Each layout is made when it is first asked for, once.
"""

from collections.abc import Callable, Collection, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from latentwire.config import Config
from latentwire.data.batch import PromptBatch
from latentwire.data.encoder_texts import EncoderTokenizer
from latentwire.data.loader import DecoderBatch, GlobalBatch, text_batch
from latentwire.data.moving import pinned
from latentwire.data.prompts import DecoderPrompts
from latentwire.data.rewriting import continued, gist_targets, repeated, written_batch
from latentwire.data.spans import Spans, decoder_spans

T = TypeVar("T")

Weighted = tuple[PromptBatch, Tensor]
"""Prompts, and [supervised] how often each target counts."""


class PartTexts:
    """One rank's part of a micro-batch for one decoder, and what objectives want of its texts.

    All results are on the host, in pinned memory where ``device`` reads from that.

    Args:
        own: the part of ``batch``.
        never_none: ranks share the decoder, so each must read equally often; see
            ``written_batch``.
    """

    def __init__(
        self,
        batch: GlobalBatch,
        own: DecoderBatch,
        prompts: DecoderPrompts,
        tokenizer: EncoderTokenizer,
        config: Config,
        *,
        device: torch.device,
        never_none: bool,
    ) -> None:
        self.batch, self.own = batch, own
        self._prompts, self._tokenizer, self._config = prompts, tokenizer, config
        self._device = device
        self._never_none = never_none
        self._made: dict[Hashable, Any] = {}

    def spans(self, num_spans: int | None = None) -> Spans:
        """Of ``decoder_spans``, of the part's wires."""

        def make() -> Spans:
            wires = [self.batch.wire(text, self._tokenizer) for text in self.own.texts]
            found = decoder_spans(wires, self._tokenizer, self._prompts, num_spans=num_spans)
            return pinned(found, self._device)

        return self._once(("spans", num_spans), make)

    def text_prompt(self) -> PromptBatch:
        """The part's prompts with text in their slot, as the text teacher reads them."""

        def make() -> PromptBatch:
            examples = [self.batch.examples[index] for index in self.own.examples]
            tokens = [self._prompts.text(example) for example in examples]
            return pinned(text_batch(tokens, pad=self._prompts.pad), self._device)

        return self._once("text_prompt", make)

    def gist_targets(self) -> tuple[Tensor, Tensor]:
        """Of ``rewriting.gist_targets``, of the part's wires."""
        texts = [self.batch.texts[t] for t in self.own.texts]
        gist_len = self._config.gist.gist_len
        return self._once("gist", lambda: gist_targets(texts, self._prompts, gist_len=gist_len))

    def repeated(self) -> Weighted | None:
        """What ``ae`` has the decoder write; None where there is nothing to write."""
        return self._once("ae", lambda: self._written("ae"))

    def continued(self) -> Weighted | None:
        """What ``continuation`` has it write."""
        return self._once("continuation", lambda: self._written("continuation"))

    def kept(self) -> tuple[tuple[bool, ...], ...]:
        """For each of the part's wires, which of its latents are kept."""
        wires = (self.batch.wire(text, self._tokenizer) for text in self.own.texts)
        return self._once("kept", lambda: tuple(wire.keep or () for wire in wires))

    def make(self, names: Collection[str]) -> None:
        """Makes what the objectives ``names`` will ask for."""
        adapter = self._config.adapter
        if "span" in names and adapter.use_soft_prompt:
            self.spans()
        if "span" in names and adapter.use_deep_prefix:
            self.spans(adapter.deep_prefix_len or None)
        if {"kd", "state"} & set(names):
            self.text_prompt()
        if {"latent_align", "manifold"} & set(names):
            self.kept()
        if "gist" in names:
            self.gist_targets()
        if "ae" in names:
            self.repeated()
        if "continuation" in names and self.batch.draws.text_share is not None:
            self.continued()

    def _written(self, what: str) -> Weighted | None:
        batch, prompts, tokenizer = self.batch, self._prompts, self._tokenizer
        num_tokens = self._config.objectives.ae_tokens
        texts = [
            repeated(batch, text, prompts, tokenizer, num_tokens=num_tokens)
            if what == "ae"
            else continued(batch, text, prompts, tokenizer)
            for text in self.own.texts
        ]
        laid_out = written_batch(
            batch, self.own, prompts, tokenizer, texts, never_none=self._never_none
        )
        return laid_out and (pinned(laid_out[0], self._device), laid_out[1])

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._made:
            self._made[key] = make()
        found: T = self._made[key]
        return found
