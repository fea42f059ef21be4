"""The deep prefix in a decoder: where it starts, that it carries, that nothing overwrites it."""

from pathlib import Path

import jobs
import pytest
import torch
from conftest import small_overrides
from gates import PATHS
from peft import PrefixTuningConfig, get_peft_model
from torch import Tensor

from latentwire.config import ConfigError, DecoderConfig
from latentwire.data.batch import PrefixRow, PromptRow, prompt_batch
from latentwire.data.example import Example
from latentwire.data.loader import decoder_batch, global_batch, text_batch
from latentwire.data.prompts import DecoderPrompts
from latentwire.decoders.cache import at_rest, cache_shape
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.decoders.generation import greedy
from latentwire.decoders.loading import load_decoder
from latentwire.objectives.tokens import token_losses
from latentwire.wire.unit import Injection

CPU = torch.device("cpu")
EXAMPLES = [
    Example(context="Mira lives in Orsa. Mira drinks tea.", question="Where?", answers=("Orsa",)),
    Example(context="Tovan plays the flute.", question="Who?", answers=("Tovan",)),
]


@pytest.fixture(params=["llama", "qwen"])
def decoder(pair: Path, request: pytest.FixtureRequest) -> FrozenDecoder:
    config = DecoderConfig(model=str(pair / request.param))
    return load_decoder(request.param, config, dtype=torch.float32, device=CPU)


def losses(reference: jobs.SingleProcess, name: str) -> tuple[float, float]:
    """A fresh wire's loss, and that of no context at all."""
    decoder, prompts = reference.decoders[name], reference.prompts[name]
    stage = jobs.make_stage(reference.config)
    examples = [example for step in range(1, 9) for example in stage.plan(step).examples]
    batch = global_batch(examples, prompts)
    own = decoder_batch(batch, prompts, reference.tokenizer, part=0, num_parts=1).latents_prompt
    none = text_batch([prompts.text(example, context="") for example in examples], pad=prompts.pad)
    with torch.no_grad():
        found = decoder.answer(own, reference.inject(name, batch)).logits
        plain = decoder.answer(none).logits
    return (
        float(token_losses(found, own.targets).mean()),
        float(token_losses(plain, none.targets).mean()),
    )


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_first_step_is_no_worse_than_without_it(
    name: str, embedded_pair: Path, tmp_path: Path
) -> None:
    found = {}
    for path, more in PATHS.items():
        overrides = small_overrides(embedded_pair, tmp_path, "train.batch_size=48", *more)
        found[path], none = losses(jobs.SingleProcess(overrides), name)
    print(f"{name}: {found}, no context {none:.4f}")
    # Near zero, not zero: the difference is within a thousandth of a nat.
    assert found["both"] <= found["soft"] + 1e-3
    assert found["deep"] <= none


def replayed(decoder: FrozenDecoder) -> tuple[list[PromptRow], Injection, list]:
    """Text prompts whose slots hold constants, with what the text's own keys and values are more
    than the constants'."""
    prompts = DecoderPrompts(decoder.tokenizer)
    tokens = [prompts.text(example) for example in EXAMPLES]
    longest = max(len(prompt.slot) for prompt in tokens)
    vectors = torch.zeros(len(tokens), longest, decoder.inputs.hidden_size)
    rows = []
    for index, example in enumerate(EXAMPLES):
        wire = prompts.wire(example)
        prefix = PrefixRow(before=wire.before, soft_row=index, num_soft=len(tokens[index].slot))
        rows.append(PromptRow(prefix=prefix, after=wire.after, answer=wire.answer))
    batch, text = prompt_batch(rows, pad=prompts.pad), text_batch(tokens, pad=prompts.pad)
    constant = decoder.read(batch, Injection(vectors=vectors), with_prefixes=True).prefixes
    own = decoder.read(text, None, with_prefixes=True).prefixes
    assert constant is not None and own is not None
    shape = decoder.shape(with_cache=True).cache
    assert shape is not None
    added = torch.zeros(
        len(tokens), longest, shape.num_layers, 2, shape.num_kv_heads, shape.head_dim
    )
    for layer, (before, after) in enumerate(zip(constant, own, strict=True)):
        for kind in range(2):
            more = (after[kind] - before[kind]).unflatten(-1, (shape.num_kv_heads, shape.head_dim))
            for index, row in enumerate(rows):
                first, number = len(row.prefix.before), row.prefix.num_soft
                added[index, :number, layer, kind] = more[index, first : first + number]
    return rows, Injection(vectors=vectors, added=added), tokens


def test_real_keys_and_values_through_it_are_the_text(decoder: FrozenDecoder) -> None:
    """Gate 2 for the deep prefix: what the decoder itself knows of a text, through the wire."""
    prompts = DecoderPrompts(decoder.tokenizer)
    with torch.no_grad():
        rows, wire, tokens = replayed(decoder)
        found = decoder.answer(prompt_batch(rows, pad=prompts.pad), wire).logits
        expected = decoder.answer(text_batch(tokens, pad=prompts.pad)).logits
        plain = decoder.answer(
            prompt_batch(rows, pad=prompts.pad), Injection(vectors=wire.vectors)
        ).logits
        torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)
        assert not torch.allclose(plain, expected, atol=1e-2)
        asked, said = (
            prompt_batch(rows, pad=prompts.pad, answers=False),
            text_batch(tokens, pad=prompts.pad, answers=False),
        )
        through = greedy(decoder, asked, ends=prompts.ends, max_new_tokens=6, wire=wire)
        assert torch.equal(through, greedy(decoder, said, ends=prompts.ends, max_new_tokens=6))


def wires(decoder: FrozenDecoder, seed: int) -> Injection:
    shape = decoder.shape(with_cache=True).cache
    assert shape is not None
    generator = torch.Generator().manual_seed(seed)
    size = (2, 5, shape.num_layers, 2, shape.num_kv_heads, shape.head_dim)
    vectors = decoder.inputs.rms * torch.randn(
        2, 5, decoder.inputs.hidden_size, generator=generator
    )
    return Injection(vectors=vectors, added=torch.randn(size, generator=generator))


def said(decoder: FrozenDecoder, wire: Injection) -> tuple[Tensor, Tensor]:
    """Logits of answers, and what is generated, after a wire."""
    prompts = DecoderPrompts(decoder.tokenizer)
    rows = []
    for index, example in enumerate(EXAMPLES):
        tokens = prompts.wire(example)
        prefix = PrefixRow(before=tokens.before, soft_row=index, num_soft=5)
        rows.append(PromptRow(prefix=prefix, after=tokens.after, answer=tokens.answer))
    with torch.no_grad():
        logits = decoder.answer(prompt_batch(rows, pad=prompts.pad), wire).logits
        asked = prompt_batch(rows, pad=prompts.pad, answers=False)
        return logits, greedy(decoder, asked, ends=prompts.ends, max_new_tokens=6, wire=wire)


def test_constant_prefix_of_peft_does_not_overwrite_a_wire(decoder: FrozenDecoder) -> None:
    """peft's prefix tuning puts its constants in place of any cache it is given."""
    torch.manual_seed(0)
    settings = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    tuned = get_peft_model(decoder.model, settings)
    prefixed = FrozenDecoder("prefixed", tuned, decoder.tokenizer)
    one, other = wires(prefixed, 1), wires(prefixed, 2)
    soft, deep = (
        Injection(vectors=other.vectors, added=one.added),
        Injection(vectors=one.vectors, added=other.added),
    )
    base = said(prefixed, one)[0]
    for changed in (soft, deep):
        assert (said(prefixed, changed)[0] - base).abs().max() > 0.05, "both wires are read"
    assert (said(decoder, one)[0] - base).abs().max() > 0.05, "and so is the constant"


def test_without_a_wire_the_constant_prefix_is_what_peft_makes_of_it(
    decoder: FrozenDecoder,
) -> None:
    torch.manual_seed(0)
    settings = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    tuned = get_peft_model(decoder.model, settings).eval()
    prompts = DecoderPrompts(decoder.tokenizer)
    prompt = prompts.text(EXAMPLES[0])
    ids = torch.tensor([[*prompt.before, *prompt.slot, *prompt.after, *prompt.answer]])
    with torch.no_grad():
        expected = tuned(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        prefixed = FrozenDecoder("prefixed", tuned, decoder.tokenizer)
        found = prefixed.answer(text_batch([prompt], pad=prompts.pad)).logits
    first = len(ids[0]) - len(prompt.answer) - 1
    torch.testing.assert_close(found, expected[first:-1], atol=2e-5, rtol=1e-4)


def test_keys_come_to_rest_wherever_they_stood(decoder: FrozenDecoder) -> None:
    """First-layer keys of one token are the same at every position, once turned back."""
    ids = torch.full((1, 6), 7)
    keys, values = decoder.keys_and_values(ids, torch.ones_like(ids, dtype=torch.bool))[0]
    torch.testing.assert_close(keys, keys[:, :1].expand_as(keys), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(values, values[:, :1].expand_as(values))
    with torch.no_grad():
        output = decoder.model(input_ids=ids, use_cache=True)
    turned, _ = at_rest(output.past_key_values, first=0, rotate=None)[0]
    assert not torch.allclose(turned, turned[:, :1].expand_as(turned), atol=1e-2)


def test_cache_of_another_kind_is_refused() -> None:
    class Recurrent:
        layers = (object(),)

    with pytest.raises(ConfigError, match="adapter.use_deep_prefix: the cache of decoder 'x'"):
        cache_shape("x", Recurrent(), num_tokens=4)
