"""Batched greedy decoding after a prefix of text or wire."""

import torch
from torch import Tensor

from latentwire.data.batch import PromptBatch
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.wire.unit import Injection


@torch.no_grad()
def greedy(
    decoder: FrozenDecoder,
    batch: PromptBatch,
    *,
    eos: int,
    max_new_tokens: int,
    wire: Injection | None = None,
) -> Tensor:
    """Greedy continuations [examples, max_new_tokens]; after a row's EOS only EOS follows.

    Args:
        batch: prompts laid out without answers.
        wire: what fills the slots; None for text.
    """
    context = decoder.read(batch, wire)
    logits, _ = decoder.continue_from(
        context, batch.suffix_ids, batch.suffix_mask, batch.suffix_positions, batch.columns
    )
    positions = batch.suffix_positions[:, -1:]
    column = torch.zeros(1, dtype=torch.long, device=positions.device)
    done = torch.zeros(len(positions), dtype=torch.bool, device=positions.device)
    tokens = []
    for _ in range(max_new_tokens):
        token = logits[:, -1].argmax(-1).masked_fill(done, eos)  # [examples]
        tokens.append(token)
        done = done | (token == eos)
        # A sharded decoder goes on for as long as any of its ranks has something to write.
        if len(tokens) == max_new_tokens or decoder.all_agree(bool(done.all())):
            break
        positions = positions + 1
        real = torch.ones_like(positions, dtype=torch.bool)
        logits, _ = decoder.continue_from(context, token[:, None], real, positions, column)
    generated = torch.stack(tokens, dim=1)
    missing = max_new_tokens - generated.shape[1]
    return torch.nn.functional.pad(generated, (0, missing), value=eos)
