"""Gates 1 and 2: the loss is the loss, and the latent path reads what the text path reads."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    FalconH1Config,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    MistralForCausalLM,
)

from latentwire.config import DecoderConfig
from latentwire.data.batch import PrefixRow, PromptRow, prompt_batch
from latentwire.data.example import Example
from latentwire.data.loader import text_batch
from latentwire.data.prompts import Carries, DecoderPrompts, PromptTokens
from latentwire.decoders.cache import unfit_layers
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.decoders.generation import greedy
from latentwire.decoders.loading import load_decoder
from latentwire.objectives.tokens import tf, token_losses
from latentwire.wire.unit import Injection

CPU = torch.device("cpu")
EXAMPLES = [
    Example(context="Mira lives in Orsa. Mira drinks tea.", question="Where?", answers=("Orsa",)),
    Example(context="Mira lives in Orsa. Mira drinks tea.", question="What drink?", answers=("a",)),
    Example(
        context="Tovan plays the flute and keeps a goose.", question="Who?", answers=("Tovan",)
    ),
    Example(context="", question="Why is that so?", answers=("no reason",)),
]


@pytest.fixture(params=["llama", "qwen"])
def decoder(pair: Path, request: pytest.FixtureRequest) -> FrozenDecoder:
    config = DecoderConfig(model=str(pair / request.param))
    return load_decoder(request.param, config, dtype=torch.float32, device=CPU)


def alone(decoder: FrozenDecoder, tokens: PromptTokens) -> torch.Tensor:
    """Logits at the answer positions of one prompt, by the model's plain forward."""
    prompt = [*tokens.before, *tokens.slot, *tokens.after]
    ids = torch.tensor([[*prompt, *tokens.answer]])
    with torch.no_grad():
        logits = decoder.model(input_ids=ids).logits[0]
    return logits[len(prompt) - 1 : -1]


@pytest.mark.parametrize("carries", ["context", "prompt"])
def test_batched_prompts_equal_prompts_alone(decoder: FrozenDecoder, carries: Carries) -> None:
    """Padding, shared prefixes, masks and positions change nothing: batch of 4 against 4 of 1."""
    prompts = DecoderPrompts(decoder.tokenizer, carries=carries)
    tokens = [prompts.text(example) for example in EXAMPLES]
    batch = text_batch(tokens, pad=prompts.pad)
    assert len(batch.prefix_ids) == (3 if carries == "context" else 4)
    together = decoder.answer(batch).logits.detach()
    expected = torch.cat([alone(decoder, prompt) for prompt in tokens])
    torch.testing.assert_close(together, expected, atol=2e-5, rtol=1e-4)


def sliding(pair: Path, window: int) -> FrozenDecoder:
    """A random model that sees ``window`` tokens back, with the pair's tokenizer."""
    base = load_decoder(
        "llama", DecoderConfig(model=str(pair / "llama")), dtype=torch.float32, device=CPU
    )
    torch.manual_seed(0)
    settings = MistralConfig(
        vocab_size=base.inputs.vocabulary,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        sliding_window=window,
    )
    return FrozenDecoder("mistral", MistralForCausalLM(settings), base.tokenizer)


def test_a_sliding_window_bounds_the_prompts(pair: Path) -> None:
    """Rows of a batch share columns: padding must not push tokens out of a row's window."""
    assert sliding(pair, 8192).window == 4096
    decoder = sliding(pair, 400)
    assert decoder.window == 200
    prompts = DecoderPrompts(decoder.tokenizer, window=decoder.window)
    tokens = [prompts.text(example) for example in EXAMPLES]
    batch = text_batch(tokens, pad=prompts.pad)
    expected = torch.cat([alone(decoder, prompt) for prompt in tokens])
    together = decoder.answer(batch).logits.detach()
    torch.testing.assert_close(together, expected, atol=2e-5, rtol=1e-4)
    short = sliding(pair, batch.prefix_ids.shape[1] + 2)
    with pytest.raises(
        ValueError, match="mistral: a batch of .* beyond the model's sliding window"
    ):
        short.answer(batch)


def test_layers_that_keep_no_tokens_are_known() -> None:
    assert unfit_layers(LlamaConfig()) == unfit_layers(MistralConfig()) == []
    assert unfit_layers(FalconH1Config()) == ["LinearAttentionAndFullAttentionLayer"]
    assert unfit_layers(Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"]))


def test_loss_equals_cross_entropy_by_hand(decoder: FrozenDecoder) -> None:
    """Gate 1: labels shifted once, EOS supervised, BOS never a target."""
    prompts = DecoderPrompts(decoder.tokenizer)
    tokens = [prompts.text(example) for example in EXAMPLES]
    batch = text_batch(tokens, pad=prompts.pad)
    loss = tf(token_losses(decoder.answer(batch).logits, batch.targets))
    by_hand = 0.0
    for prompt in tokens:
        assert prompt.answer[-1] == decoder.tokenizer.eos_token_id
        assert decoder.tokenizer.bos_token_id not in prompt.answer
        sequence = [*prompt.before, *prompt.slot, *prompt.after, *prompt.answer]
        for place, token in enumerate(prompt.answer):
            known = sequence[: len(sequence) - len(prompt.answer) + place]
            with torch.no_grad():
                logits = decoder.model(input_ids=torch.tensor([known])).logits[0, -1]
            by_hand -= float(logits.double().log_softmax(-1)[token])
    assert float(loss) == pytest.approx(by_hand, rel=1e-5)


def replay(
    decoder: FrozenDecoder, prompts: DecoderPrompts
) -> tuple[list[PromptRow], torch.Tensor, list[PromptTokens]]:
    """The text prompts again, their slots' real embeddings given as soft prompts."""
    tokens = [prompts.text(example) for example in EXAMPLES]
    longest = max(len(prompt.slot) for prompt in tokens)
    soft = torch.zeros(len(tokens), longest, decoder.inputs.hidden_size)
    embed = decoder.model.get_input_embeddings()
    rows = []
    for index, (prompt, example) in enumerate(zip(tokens, EXAMPLES, strict=True)):
        soft[index, : len(prompt.slot)] = embed(
            torch.tensor(prompt.slot, dtype=torch.long)
        ).detach()
        wire = prompts.wire(example)
        prefix = PrefixRow(before=wire.before, soft_row=index, num_soft=len(prompt.slot))
        rows.append(PromptRow(prefix=prefix, after=wire.after, answer=wire.answer))
    return rows, soft, tokens


@pytest.mark.parametrize("carries", ["context", "prompt"])
def test_replay_of_real_embeddings_gives_the_text_logits(
    decoder: FrozenDecoder, carries: Carries
) -> None:
    """Gate 2."""
    prompts = DecoderPrompts(decoder.tokenizer, carries=carries)
    rows, soft, tokens = replay(decoder, prompts)
    batch = prompt_batch(rows, pad=prompts.pad)
    latent = decoder.answer(batch, Injection(vectors=soft)).logits.detach()
    text = decoder.answer(text_batch(tokens, pad=prompts.pad)).logits.detach()
    torch.testing.assert_close(latent, text, atol=2e-5, rtol=1e-4)


def test_generation_equals_the_library_on_text_and_on_replay(decoder: FrozenDecoder) -> None:
    """Greedy decoding, batched with padding, against ``generate`` one prompt at a time."""
    prompts = DecoderPrompts(decoder.tokenizer)
    rows, soft, tokens = replay(decoder, prompts)
    batch = text_batch(tokens, pad=prompts.pad, answers=False)
    text = greedy(decoder, batch, ends=prompts.ends, max_new_tokens=6)
    replayed = prompt_batch(rows, pad=prompts.pad, answers=False)
    latent = greedy(
        decoder, replayed, ends=prompts.ends, max_new_tokens=6, wire=Injection(vectors=soft)
    )
    assert torch.equal(text, latent)
    for row, prompt in zip(text, tokens, strict=True):
        ids = torch.tensor([[*prompt.before, *prompt.slot, *prompt.after]])
        expected = decoder.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=prompts.eos,
            pad_token_id=prompts.eos,
        )[0, ids.shape[1] :]
        padded = F.pad(expected, (0, 6 - len(expected)), value=prompts.eos)
        assert row.tolist() == padded.tolist()


def test_gradient_reaches_the_soft_prompt_and_not_the_decoder(decoder: FrozenDecoder) -> None:
    prompts = DecoderPrompts(decoder.tokenizer)
    rows, soft, _ = replay(decoder, prompts)
    soft.requires_grad_(True)
    batch = prompt_batch(rows, pad=prompts.pad)
    tf(
        token_losses(decoder.answer(batch, Injection(vectors=soft)).logits, batch.targets)
    ).backward()
    assert soft.grad is not None
    for index, row in enumerate(rows):
        used = soft.grad[index, : row.prefix.num_soft]
        assert (used.norm(dim=-1) > 0).all()
        assert (soft.grad[index, row.prefix.num_soft :] == 0).all()
    assert all(parameter.grad is None for parameter in decoder.model.parameters())


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_states_are_the_models_own(decoder: FrozenDecoder, layer: int) -> None:
    """Padded rows give what each row gives alone; stopping at a layer leaves the model whole."""
    rows = [[5, 9, 200, 31, 7], [40, 41, 42]]
    ids = torch.zeros((2, 5), dtype=torch.long)
    mask = torch.zeros((2, 5), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = True
    hooks = [len(module._forward_hooks) for module in decoder.model.modules()]
    found = decoder.states(ids, mask, layer=layer)
    assert [len(module._forward_hooks) for module in decoder.model.modules()] == hooks
    assert not found.requires_grad
    for index, row in enumerate(rows):
        with torch.no_grad():
            output = decoder.model(input_ids=torch.tensor([row]), output_hidden_states=True)
            own = found[index, : len(row)]
            # The last state that the model reports is after its final norm.
            if layer == 2:
                own = decoder.model.model.norm(own)
            expected = output.hidden_states[layer][0]
            torch.testing.assert_close(own, expected, atol=2e-5, rtol=1e-4)
    tokens = [DecoderPrompts(decoder.tokenizer).text(example) for example in EXAMPLES[:1]]
    torch.testing.assert_close(
        decoder.answer(text_batch(tokens, pad=0)).logits, alone(decoder, tokens[0])
    )
