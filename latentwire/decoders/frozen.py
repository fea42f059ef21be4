"""A frozen decoder: reads prefixes once, and gives logits and states where asked.

Whatever is read, text or wire, goes through ``read`` and ``continue_from``; the text teacher, the
latent student and generation differ only in what fills the prefix.
"""

from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.data.batch import PromptBatch
from latentwire.decoders.answered import Answered, Context
from latentwire.decoders.cache import (
    Filled,
    Filling,
    add_to_cache,
    at_rest,
    cache_shape,
    context_window,
    sliding_window,
)
from latentwire.decoders.constant_prefix import ConstantPrefix, Openings, without_prompt_learning
from latentwire.decoders.copy_ranks import CopyRanks
from latentwire.decoders.embeddings import InputEmbeddings
from latentwire.decoders.head import taken_apart
from latentwire.decoders.lora import LoraSlots
from latentwire.decoders.masks import takes_masks, token_mask
from latentwire.decoders.rotation import Rotation, rotaries_of, rotation_of
from latentwire.wire.backbones import transformer_layers
from latentwire.wire.deep_prefix import CacheShape
from latentwire.wire.lora import Updates
from latentwire.wire.unit import DecoderShape, Injection


class _Reached(Exception):  # noqa: N818
    """The layer whose states are wanted has run; those above it need not."""


class FrozenDecoder:
    """A causal LM whose weights never change; gradients pass through it to its inputs.

    Args:
        name: the decoder's name in the configuration.
        model: a Hugging Face causal LM.
        tokenizer: its tokenizer.
        lora_targets: linear layers that a wire may update, as ``LoraSlots`` names them.
        ranks: that hold the model together, where it is sharded. All of them must then make one,
            and read with it equally often.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        *,
        lora_targets: str | None = None,
        ranks: CopyRanks | None = None,
    ) -> None:
        self.name = name
        self.constant: ConstantPrefix | None
        self.model, self.constant = without_prompt_learning(model.eval().requires_grad_(False))
        self.tokenizer = tokenizer
        self.lora = LoraSlots(self.model, lora_targets) if lora_targets else None
        self.ranks = ranks
        """That hold the model together; None where each rank has all of it."""
        self.inputs = InputEmbeddings(self.model.get_input_embeddings(), ranks)
        self._sliding = sliding_window(self.model.config)
        self._rotaries = rotaries_of(self.model)
        self._mask = partial(
            token_mask, takes_masks=len(self._rotaries) == 1 and takes_masks(self.model)
        )
        # A sharded model's layers are gathered by the forward of the whole only.
        probe = torch.arange(8, device=self.device) % self.inputs.vocabulary
        self.head = taken_apart(name, self.model, self.embed(probe)) if ranks is None else None
        """That makes logits of states; None where only the whole model does."""
        # Ranks that hold a model together must read equally often, whatever each has kept.
        self._openings = Openings(self._opening, self.constant) if ranks is None else None

    @property
    def num_logits(self) -> int:
        """Logits of a position, which may be fewer or more than input embeddings."""
        head = self.model.get_output_embeddings()
        return int(getattr(head, "out_features", None) or head.weight.shape[0])

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    @property
    def window(self) -> int:
        """Longest prompt in tokens."""
        return context_window(self.model.config)

    def embed(self, ids: Tensor) -> Tensor:
        """[...] token ids -> [..., hidden]."""
        return self.inputs(ids)

    def all_agree(self, flag: bool) -> bool:
        """Whether ``flag`` is true on every rank that must read as often as this one."""
        return flag if self.ranks is None else self.ranks.all_agree(flag)

    @property
    def num_layers(self) -> int:
        return len(transformer_layers(self.model))

    def shape(self, *, with_cache: bool) -> DecoderShape:
        """What this decoder's unit must know of it.

        Args:
            with_cache: the unit has a deep prefix.

        Raises:
            ConfigError: the decoder's cache is not one a deep prefix can be added to.
        """
        found = DecoderShape(
            hidden_size=self.inputs.hidden_size,
            embedding_rms=self.inputs.rms,
            mean_embedding=self.inputs.mean,
            cache=self._cache_shape() if with_cache else None,
            linears=self.lora.features if self.lora else {},
        )
        _ = self._rotate  # is found here, where all start, and not in the middle of a step
        return found

    @cached_property
    def _rotate(self) -> Rotation | None:
        """What is added to a key is turned along with it, so that it says the same wherever it
        stands. None where no layer turns its keys in a way that is known."""
        with torch.no_grad():
            cache = self._filled(self.inputs.repeated(8))
        found = rotation_of(self.name, self._rotaries, [layer.keys for layer in cache.layers])
        return found if any(found.ways) else None

    @torch.no_grad()
    def _cache_shape(self) -> CacheShape:
        ids = torch.arange(64, device=self.device)[None] % self.inputs.vocabulary
        output = self._through(self.embed(ids), use_cache=True)
        return cache_shape(self.name, output.past_key_values, num_tokens=ids.shape[1])

    @torch.no_grad()
    def states(
        self, ids: Tensor, mask: Tensor, *, layer: int, is_full: bool | None = None
    ) -> Tensor:
        """The decoder's own states of plain tokens: [rows, length] -> [rows, length, hidden].

        Args:
            mask: [rows, length], True at real tokens, which stand on the left.
            layer: 0 for the input embeddings, n for the states after the n-th layer.
            is_full: whether all tokens are real, where the host knows.
        """
        embeds = self.embed(ids)
        if layer == 0:
            return embeds
        found: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)
            if self.ranks is None:  # FSDP2 does not expect a forward that breaks off
                raise _Reached

        handle = transformer_layers(self.model)[layer - 1].register_forward_hook(keep)
        try:
            self._through(
                embeds,
                attention_mask=self._mask(mask, is_full),
                # Without a mask and a cache the model looks for packed sequences, on the host.
                use_cache=bool(is_full),
            )
        except _Reached:
            pass
        finally:
            handle.remove()
        return found[0]

    @torch.no_grad()
    def keys_and_values(
        self, ids: Tensor, mask: Tensor, *, is_full: bool | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """The decoder's own keys and values of plain tokens, as ``at_rest``: of each layer
        [rows, length, kv_heads * head_dim]; arguments as in ``states``."""
        cache = self._filled(self.embed(ids), attention_mask=self._mask(mask, is_full))
        return at_rest(cache, first=0, rotate=self._rotate)

    def read(
        self, batch: PromptBatch, wire: Injection | None, *, with_prefixes: bool = False
    ) -> Context:
        """Reads every prefix once and hands each example its own.

        Args:
            wire: what fills the slots, and is added to the cache there; None for text.
            with_prefixes: keep the prefixes' keys and values.
        """
        context = self.read_prefixes(batch, wire, with_prefixes=with_prefixes)
        context.cache.batch_select_indices(batch.prefix_of)
        context.mask = context.mask[batch.prefix_of]
        return context

    def read_prefixes(
        self, batch: PromptBatch, wire: Injection | None, *, with_prefixes: bool = False
    ) -> Context:
        """What ``read`` computes once for each prefix: a context of one row for each of them."""
        lora: Updates = {} if wire is None else wire.lora
        before, num_read = self.constant, 0
        if self._openings is not None and not lora:  # with updates its keys are others
            before, num_read = self._openings.of(batch.constant)
        soft = batch.prefix_soft[:, num_read:]
        embeds = self.embed(batch.prefix_ids[:, num_read:])  # [prefixes, length, hidden]
        if wire is not None:
            rows = batch.prefix_soft_row[:, None]
            vectors = wire.vectors[rows, soft.clamp(min=0)].to(embeds.dtype)
            embeds = torch.where((soft >= 0)[..., None], vectors, embeds)
        mask, first, past = batch.prefix_mask[:, num_read:], 0, None
        if before is not None:
            first, past = before.length, before.cache(len(embeds))
        attention_mask = self._mask(mask, batch.prefix_is_full, first=first)
        if first:
            mask = nn.functional.pad(mask, (first, 0), value=True)
        place = torch.arange(first, first + embeds.shape[1], device=embeds.device)
        with self._updated(lora):
            cache = self._filled(
                embeds,
                past,
                attention_mask=attention_mask,
                position_ids=place.expand(len(embeds), -1),
            )
        if wire is not None and wire.added is not None:
            add_to_cache(
                cache,
                wire.added,
                rows=batch.prefix_soft_row,
                slots=soft,
                first=first,
                rotate=self._rotate,
            )
        prefixes = None
        if with_prefixes:
            prefixes = at_rest(cache, first=first - num_read, rotate=self._rotate)
        return Context(cache=cache, mask=mask, lora=lora, prefixes=prefixes)

    @torch.no_grad()
    def _opening(self, tokens: tuple[int, ...]) -> Any:
        """A cache of one row with ``tokens`` behind the decoder's own prefix."""
        embeds = self.embed(torch.tensor([tokens], device=self.device))
        own = self.constant
        if own is None:
            return self._filled(embeds)
        place = torch.arange(own.length, own.length + len(tokens), device=self.device)
        return self._filled(
            embeds,
            own.cache(1),
            attention_mask=torch.ones(1, own.length + len(tokens), device=self.device).long(),
            position_ids=place[None],
        )

    def continue_from(
        self,
        context: Context,
        ids: Tensor,
        mask: Tensor,
        positions: Tensor,
        columns: Tensor,
        *,
        layers: tuple[int, ...] = (),
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Reads ``ids`` [rows, length] after ``context``, which grows by them.

        Args:
            positions: [rows, length], counted from the prompt's first token.
            layers: whose states are wanted too, n for those after the n-th; those of the last
                come after the final norm.

        Returns:
            logits [rows, kept, vocabulary] at ``columns`` of ``ids``, and of each of ``layers``
            the states [rows, kept, hidden] there.
        """
        last, states = self._continue_from(context, ids, mask, positions, columns, layers)
        return last if self.head is None else self.head(last), states

    def _continue_from(
        self,
        context: Context,
        ids: Tensor,
        mask: Tensor,
        positions: Tensor,
        columns: Tensor,
        layers: tuple[int, ...],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As ``continue_from``, with what ``Answered.last`` holds in place of logits."""
        context.mask = torch.cat([context.mask, mask], dim=1)
        num_columns = context.mask.shape[1]
        if self._sliding is not None and num_columns > self._sliding:
            raise ValueError(
                f"decoders.{self.name}: a batch of {num_columns} columns is beyond the model's "
                f"sliding window of {self._sliding}; shorten questions or answers"
            )
        first = 0 if self.constant is None else self.constant.length
        with self._updated(context.lora):
            output = self._through(
                self.embed(ids),
                columns,
                attention_mask=context.mask.long(),
                position_ids=positions + first,
                past_key_values=context.cache,
                use_cache=True,
                output_hidden_states=bool(layers),
            )
        states = tuple(output.hidden_states[layer][:, columns] for layer in layers)
        last = output.logits if self.head is None else output.last_hidden_state[:, columns]
        return last, states

    def _filled(self, embeds: Tensor, past: Any | None = None, **more: Any) -> Any:
        """The cache of one forward that is only for its keys and values: where the model's cache
        is a plain one, the forward ends when they are all there."""
        if self.head is None or self.head.num_cached is None:
            more |= {} if past is None else {"past_key_values": past}
            return self._through(embeds, use_cache=True, **more).past_key_values
        layers = [] if past is None else past.layers
        cache = Filling(layers, self.head.num_cached)
        with suppress(Filled):
            self._through(embeds, past_key_values=cache, use_cache=True, **more)
        return cache.plain()

    def _through(self, embeds: Tensor, columns: Tensor | int = 1, **more: Any) -> Any:
        """One forward of the model, without its head where that is a part by itself; elsewhere
        with the logits at ``columns``."""
        if self.head is None:
            return self.model(inputs_embeds=embeds, logits_to_keep=columns, **more)
        return self.head.body(inputs_embeds=embeds, **more)

    def answer(
        self,
        batch: PromptBatch,
        wire: Injection | None = None,
        *,
        layers: tuple[int, ...] = (),
        with_prefixes: bool = False,
    ) -> Answered:
        """What the decoder says at the supervised positions, from one reading of the batch.

        Args:
            layers: whose states at those positions are wanted too.
            with_prefixes: the prefixes' keys and values are wanted too.
        """
        context = self.read(batch, wire, with_prefixes=with_prefixes)
        return self.answer_from(context, batch, layers=layers)

    def answer_from(
        self, context: Context, batch: PromptBatch, *, layers: tuple[int, ...] = ()
    ) -> Answered:
        """As ``answer``, after ``context``, which holds what was read of each example's prefix."""
        last, states = self._continue_from(
            context,
            batch.suffix_ids,
            batch.suffix_mask,
            batch.suffix_positions,
            batch.columns,
            layers,
        )
        kept = [part.flatten(0, 1)[batch.target_index] for part in states]
        return Answered(
            last=last.flatten(0, 1)[batch.target_index],
            head=self.head,
            states=torch.stack(kept) if kept else None,
            prefixes=context.prefixes,
        )

    def _updated(self, lora: Updates) -> AbstractContextManager[None]:
        assert self.lora is not None or not lora
        return nullcontext() if self.lora is None else self.lora.using(lora)
