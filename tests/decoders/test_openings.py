"""Tokens that open every prompt are read once, and make no difference by it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from torch import Tensor

from latentwire.config import DecoderConfig, LoraConfig
from latentwire.data.batch import PrefixRow, PromptBatch, PromptRow, prompt_batch
from latentwire.data.example import Example
from latentwire.data.prompts import DecoderPrompts
from latentwire.decoders import constant_prefix
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.decoders.generation import greedy
from latentwire.decoders.loading import load_decoder
from latentwire.wire.unit import Injection

OPENING = tuple(range(3, 15))
EXAMPLE = Example(context="Mira lives in Orsa.", question="Where is she?", answers=("Orsa",))


@pytest.fixture(params=["plain", "checkpointed", "prefixed"])
def decoder(pair: Path, request: pytest.FixtureRequest) -> FrozenDecoder:
    config = DecoderConfig(
        model=str(pair / "llama"), gradient_checkpointing=request.param == "checkpointed"
    )
    loaded = load_decoder("llama", config, dtype=torch.float32, device=torch.device("cpu"))
    if request.param != "prefixed":
        return loaded
    torch.manual_seed(0)
    settings = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    return FrozenDecoder("prefixed", get_peft_model(loaded.model, settings), loaded.tokenizer)


def batch(*, answers: bool = True) -> PromptBatch:
    """Three questions on two wires of unlike length."""
    wires = [
        PrefixRow(before=OPENING, num_constant=len(OPENING), soft_row=i, num_soft=5 - 2 * i)
        for i in range(2)
    ]
    rows = [
        PromptRow(prefix=wires[i], after=after, answer=(20, 21, 1))
        for i, after in ((0, (16, 17)), (0, (18,)), (1, (19, 16, 15)))
    ]
    return prompt_batch(rows, pad=2, answers=answers)


def wire(decoder: FrozenDecoder) -> Injection:
    shape = decoder.shape(with_cache=True).cache
    assert shape is not None
    torch.manual_seed(1)
    size = (2, 5, shape.num_layers, 2, shape.num_kv_heads, shape.head_dim)
    vectors = decoder.inputs.rms * torch.randn(2, 5, decoder.inputs.hidden_size)
    return Injection(vectors=vectors.requires_grad_(), added=torch.randn(size).requires_grad_())


def read(decoder: FrozenDecoder, laid_out: PromptBatch) -> dict[str, Tensor]:
    own = wire(decoder)
    said = decoder.answer(laid_out, own, layers=(1,), with_prefixes=True)
    assert said.states is not None and said.prefixes is not None
    prefixes = torch.stack([torch.stack(layer) for layer in said.prefixes])
    real = laid_out.prefix_mask[..., None]
    total = said.logits.logsumexp(-1).sum() + (prefixes * real).square().sum()
    gradients = torch.autograd.grad(total, [own.vectors, own.added])
    with torch.no_grad():
        written = greedy(decoder, batch(answers=False), ends=[1], max_new_tokens=4, wire=own)
    return {
        "logits": said.logits,
        "states": said.states,
        "prefixes": prefixes * real,
        "vectors": gradients[0],
        "added": gradients[1],
        "written": written.float(),
    }


@pytest.fixture
def lengths(decoder: FrozenDecoder, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Rows and length of everything that the decoder's body reads."""
    assert decoder.head is not None
    found: list[tuple[int, ...]] = []
    decoder.head.body.register_forward_pre_hook(
        lambda module, args, kwargs: found.append(tuple(kwargs["inputs_embeds"].shape[:2])),
        with_kwargs=True,
    )
    return found


def test_what_is_read_once_reads_as_if_it_were_read_again(
    decoder: FrozenDecoder, lengths: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert batch().constant == OPENING
    found = read(decoder, batch())
    assert lengths.count((1, len(OPENING))) == 1, "read once, by one row"
    assert (2, 5) in lengths and (2, 5 + len(OPENING)) not in lengths
    monkeypatch.setattr(constant_prefix, "FEWEST", 1 << 30)
    del lengths[:]
    expected = read(decoder, batch())
    assert (2, 5 + len(OPENING)) in lengths
    for name, value in expected.items():
        assert value.abs().sum() > 0
        torch.testing.assert_close(found[name], value, atol=5e-5, rtol=1e-4, msg=name)


def test_text_opens_with_it_too(decoder: FrozenDecoder, lengths: list[tuple[int, ...]]) -> None:
    rows = [
        PromptRow(
            prefix=PrefixRow(before=OPENING, num_constant=len(OPENING), slot=slot),
            after=(16,),
            answer=(20, 1),
        )
        for slot in ((30, 31, 32), (33,))
    ]
    laid_out = prompt_batch(rows, pad=2)
    with torch.no_grad():
        found = decoder.answer(laid_out).logits
        expected = decoder.answer(replace(laid_out, constant=())).logits
    assert (2, 3) in lengths
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_with_updates_of_its_layers_a_decoder_reads_all(pair: Path) -> None:
    config = DecoderConfig(model=str(pair / "llama"), lora=LoraConfig(rank=2, targets="k_proj"))
    decoder = load_decoder("llama", config, dtype=torch.float32, device=torch.device("cpu"))
    assert decoder.lora is not None
    torch.manual_seed(0)
    updates = {
        name: (torch.randn(2, num_in), torch.randn(num_out, 2))
        for name, (num_in, num_out) in decoder.lora.features.items()
    }
    vectors = decoder.inputs.rms * torch.randn(2, 5, decoder.inputs.hidden_size)
    injections = [Injection(vectors=vectors), Injection(vectors=vectors, lora=updates)]
    with torch.no_grad():
        decoder.answer(batch(), injections[0])
        found = [decoder.answer(batch(), one).logits for one in injections]
        plain = replace(batch(), constant=())
        expected = [decoder.answer(plain, one).logits for one in injections]
    assert (found[0] - found[1]).abs().max() > 1e-3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_only_the_last_few_openings_are_kept() -> None:
    asked: list[Any] = []

    def read_one(tokens: tuple[int, ...]) -> Any:
        asked.append(tokens)
        return constant_prefix.ConstantPrefix(
            [torch.zeros(1, 1, 9, 2)], [torch.zeros(1, 1, 9, 2)]
        ).cache(1)

    kept = constant_prefix.Openings(read_one, None)
    many = [(number,) * 9 for number in range(9)]
    for tokens in (*many[:8], many[0], many[8], many[0], many[1]):
        assert kept.of(tokens)[1] == 9
    assert asked == [*many, many[1]], "the one that was asked for longest ago has gone"
    assert kept.of((1, 2)) == (None, 0)


@pytest.mark.parametrize(
    ("template", "is_whole"),
    [("Text: {context}\nQ: {question}", True), ("Q: {question}\nText: {context}", False)],
)
def test_what_varies_by_example_is_no_opening(pair: Path, template: str, *, is_whole: bool) -> None:
    decoder = load_decoder(
        "llama",
        DecoderConfig(model=str(pair / "llama")),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    prompts = DecoderPrompts(decoder.tokenizer, template=template)
    tokens, other = prompts.wire(EXAMPLE), prompts.wire(replace(EXAMPLE, question="Why?"))
    assert tokens.num_constant > 0
    assert (tokens.num_constant == len(tokens.before)) is is_whole
    assert tokens.before[: tokens.num_constant] == other.before[: tokens.num_constant]
    assert prompts.text(EXAMPLE).num_constant == tokens.num_constant
    assert prompts.truncated(EXAMPLE, 2).num_constant == tokens.num_constant
