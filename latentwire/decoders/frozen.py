"""A frozen decoder: a causal LM that reads prefixes once, and gives logits where asked.

Whatever is read, text or wire, goes through ``read`` and ``continue_from``; the text teacher, the
latent student and generation differ only in what fills the prefix.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.data.batch import PromptBatch
from latentwire.wire.encoder import transformer_layers


@dataclass(kw_only=True)
class Context:
    """What a decoder has read of each example so far: keys, values and their mask."""

    cache: Any
    mask: Tensor
    """[rows, positions]: True at positions that may be attended to."""


class _Reached(Exception):  # noqa: N818
    """The layer whose states are wanted has run; those above it need not."""


class FrozenDecoder:
    """A causal LM whose weights never change; gradients pass through it to its inputs.

    Args:
        name: the decoder's name in the configuration.
        model: a Hugging Face causal LM.
        tokenizer: its tokenizer.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._embed = model.get_input_embeddings()

    @property
    def hidden_size(self) -> int:
        return int(self._embed.weight.shape[1])

    @property
    def device(self) -> torch.device:
        device: torch.device = self._embed.weight.device
        return device

    @property
    def window(self) -> int:
        """Longest sequence of the model in tokens."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 1 << 30)

    def embedding_rms(self) -> float:
        """Root mean square of the input embeddings."""
        return float(self._embed.weight.detach().float().pow(2).mean().sqrt())

    @torch.no_grad()
    def states(self, ids: Tensor, mask: Tensor, *, layer: int) -> Tensor:
        """The decoder's own states of plain tokens: [rows, length] -> [rows, length, hidden].

        Args:
            mask: [rows, length], True at real tokens, which stand on the left.
            layer: 0 for the input embeddings, n for the states after the n-th layer.
        """
        embeds: Tensor = self._embed(ids)
        if layer == 0:
            return embeds
        found: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)
            raise _Reached

        handle = transformer_layers(self.model)[layer - 1].register_forward_hook(keep)
        try:
            self.model(inputs_embeds=embeds, attention_mask=mask.long(), use_cache=False)
        except _Reached:
            pass
        finally:
            handle.remove()
        return found[0]

    def read(self, batch: PromptBatch, soft: Tensor | None) -> Context:
        """Reads every prefix once and hands each example its own.

        Args:
            soft: soft prompts [rows, vectors, hidden_size] that fill the slots; None for text.
        """
        embeds = self._embed(batch.prefix_ids)  # [prefixes, length, hidden]
        if soft is not None:
            rows = batch.prefix_soft_row[:, None]
            vectors = soft[rows, batch.prefix_soft.clamp(min=0)].to(embeds.dtype)
            embeds = torch.where((batch.prefix_soft >= 0)[..., None], vectors, embeds)
        length = embeds.shape[1]
        place = torch.arange(length, device=embeds.device).expand(embeds.shape[0], -1)
        output = self.model(
            inputs_embeds=embeds,
            attention_mask=batch.prefix_mask.long(),
            position_ids=place,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        cache.batch_select_indices(batch.prefix_of)
        return Context(cache=cache, mask=batch.prefix_mask[batch.prefix_of])

    def continue_from(
        self, context: Context, ids: Tensor, mask: Tensor, positions: Tensor, columns: Tensor
    ) -> Tensor:
        """Reads ``ids`` [rows, length] after ``context``, which grows by them.

        Returns:
            logits [rows, kept, vocabulary] at ``columns`` of ``ids``.
        """
        context.mask = torch.cat([context.mask, mask], dim=1)
        output = self.model(
            inputs_embeds=self._embed(ids),
            attention_mask=context.mask.long(),
            position_ids=positions,
            past_key_values=context.cache,
            use_cache=True,
            logits_to_keep=columns,
        )
        logits: Tensor = output.logits
        return logits

    def answer_logits(self, batch: PromptBatch, soft: Tensor | None = None) -> Tensor:
        """Logits at the supervised positions only: [supervised, vocabulary], in target order."""
        context = self.read(batch, soft)
        logits = self.continue_from(
            context, batch.suffix_ids, batch.suffix_mask, batch.suffix_positions, batch.columns
        )
        return logits.flatten(0, 1)[batch.target_index]
