"""Loading a decoder: precision, quantised weights, recomputed layers, and that it stays frozen."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

from latentwire.config import ConfigError, DecoderConfig
from latentwire.data.batch import PrefixRow, PromptBatch, PromptRow, prompt_batch
from latentwire.data.example import Example
from latentwire.data.loader import text_batch
from latentwire.data.prompts import DecoderPrompts
from latentwire.decoders import frozen
from latentwire.decoders.fingerprint import changed, combined, fingerprint, of_weights
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.decoders.generation import greedy
from latentwire.decoders.loading import load_decoder
from latentwire.decoders.quantised import dequantised
from latentwire.decoders.sharded_loading import sharding_problems
from latentwire.objectives.tokens import tf, token_losses
from latentwire.wire.backbones import transformer_layers
from latentwire.wire.unit import Injection

CPU = torch.device("cpu")
EXAMPLES = [
    Example(context="Mira lives in Orsa. Mira drinks tea.", question="Where?", answers=("Orsa",)),
    Example(context="Mira lives in Orsa. Mira drinks tea.", question="What drink?", answers=("a",)),
    Example(context="Tovan plays the flute.", question="Who?", answers=("Tovan",)),
]
QUANTISED = ("nf4", "int8")


def load(
    pair: Path, name: str = "qwen", *, dtype: torch.dtype = torch.float32, **settings: Any
) -> FrozenDecoder:
    config = DecoderConfig(model=str(pair / name), **settings)
    return load_decoder(name, config, dtype=dtype, device=CPU)


def linears(decoder: FrozenDecoder) -> dict[str, nn.Module]:
    """The linear layers inside the transformer's layers."""
    return {
        name: module
        for name, module in decoder.model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name
    }


def wired(decoder: FrozenDecoder) -> tuple[PromptBatch, Tensor]:
    """A batch whose slots are filled with vectors like embeddings, to be trained."""
    prompts = DecoderPrompts(decoder.tokenizer)
    rows = []
    for index, example in enumerate(EXAMPLES):
        wire = prompts.wire(example)
        prefix = PrefixRow(before=wire.before, soft_row=index, num_soft=7)
        rows.append(PromptRow(prefix=prefix, after=wire.after, answer=wire.answer))
    torch.manual_seed(0)
    soft = decoder.inputs.rms * torch.randn(len(EXAMPLES), 7, decoder.inputs.hidden_size)
    return prompt_batch(rows, pad=prompts.pad), soft.requires_grad_(True)


def loss_and_gradient(decoder: FrozenDecoder) -> tuple[Tensor, Tensor]:
    """The loss of a batch of wires, and its gradient at them."""
    batch, soft = wired(decoder)
    loss = tf(token_losses(decoder.answer(batch, Injection(vectors=soft)).logits, batch.targets))
    (grad,) = torch.autograd.grad(loss, soft)
    return loss.detach(), grad


def generate(decoder: FrozenDecoder) -> Tensor:
    prompts = DecoderPrompts(decoder.tokenizer)
    tokens = [prompts.text(example) for example in EXAMPLES]
    batch = text_batch(tokens, pad=prompts.pad, answers=False)
    return greedy(decoder, batch, ends=prompts.ends, max_new_tokens=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "qwen"])
@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_are_read_and_differentiated_exactly(
    pair: Path, kind: str, name: str, dtype: torch.dtype
) -> None:
    """Against a plain model that holds the dequantised weights, after generation has run too."""
    decoder = load(pair, name, dtype=dtype, quantization=kind)
    plain = load(pair, name, dtype=dtype)
    original = load(pair, name, dtype=dtype)
    assert len(linears(decoder)) == 14
    for key, module in linears(decoder).items():
        weight = plain.model.get_submodule(key).weight
        assert not torch.equal(weight, dequantised(module, dtype)), "quantising changed nothing"
        weight.data = dequantised(module, dtype)
    assert torch.equal(generate(decoder), generate(plain))
    loss, grad = loss_and_gradient(decoder)
    expected_loss, expected = loss_and_gradient(plain)
    error = float((grad - expected).norm() / expected.norm())
    assert error < (1e-4 if dtype == torch.float32 else 3e-2)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-3, atol=0)
    _, other = loss_and_gradient(original)
    assert float((grad - other).norm() / other.norm()) > 2 * error
    assert (grad.norm(dim=-1) > 0).all()


@pytest.mark.parametrize("kind", QUANTISED)
def test_what_names_tokens_is_not_quantised(pair: Path, kind: str, tmp_path: Path) -> None:
    decoder = load(pair, quantization=kind)
    storage = {"nf4": torch.uint8, "int8": torch.int8}[kind]
    assert {module.weight.dtype for module in linears(decoder).values()} == {storage}
    embed, head = decoder.model.get_input_embeddings(), decoder.model.get_output_embeddings()
    assert head.weight is embed.weight, "the tests' pair ties both"
    assert (type(head), head.weight.dtype) == (nn.Linear, torch.float32)

    plain = load(pair).model
    plain.config.tie_word_embeddings = False
    plain.lm_head.weight = nn.Parameter(plain.lm_head.weight.detach().clone())
    plain.save_pretrained(tmp_path)
    for file in (pair / "qwen").glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = DecoderConfig(model=str(tmp_path), quantization=kind)
    untied = load_decoder("x", config, dtype=torch.float32, device=CPU).model
    head = untied.get_output_embeddings()
    assert head.weight is not untied.get_input_embeddings().weight
    assert (type(head), head.weight.dtype) == (nn.Linear, torch.float32)


def test_int8_layers_keep_nothing_for_backward(pair: Path) -> None:
    module = next(iter(linears(load(pair, quantization="int8")).values()))
    x = torch.randn(2, 48, requires_grad=True)
    inner = x * 1.0
    kept = weakref.ref(inner)
    output = module(inner)
    del inner
    assert kept() is None
    output.sum().backward()
    assert x.grad is not None and bool(x.grad.any())


def test_a_decoder_may_have_a_precision_of_its_own(pair: Path) -> None:
    def dtypes(decoder: FrozenDecoder) -> set[torch.dtype]:
        return {parameter.dtype for parameter in decoder.model.parameters()}

    assert dtypes(load(pair)) == {torch.float32}
    assert dtypes(load(pair, precision="bf16")) == {torch.bfloat16}
    assert dtypes(load(pair, dtype=torch.bfloat16, precision="fp32")) == {torch.float32}
    own = load(pair, precision="bf16", quantization="nf4")
    assert dtypes(own) == {torch.bfloat16, torch.uint8}
    assert {module.compute_dtype for module in linears(own).values()} == {torch.bfloat16}
    _, grad = loss_and_gradient(load(pair))
    _, coarse = loss_and_gradient(load(pair, precision="bf16"))
    assert 0 < float((coarse - grad).norm() / grad.norm()) < 0.1


class Watched:
    """Counts the attention blocks that run, and the bytes that autograd is given to keep."""

    def __init__(self, decoder: FrozenDecoder) -> None:
        self.runs = self.saved = 0
        self._weights = {p.untyped_storage().data_ptr() for p in decoder.model.parameters()}
        for layer in transformer_layers(decoder.model):
            layer.self_attn.register_forward_pre_hook(self._ran)

    def _ran(self, *arguments: Any) -> None:
        self.runs += 1

    def _keep(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in self._weights:
            self.saved += tensor.numel() * tensor.element_size()
        return tensor

    def hooks(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)


@pytest.mark.parametrize("kind", ["none", *QUANTISED])
@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_recomputed_layers_change_nothing_and_keep_little(pair: Path, name: str, kind: str) -> None:
    """Over a prefix that examples share, read into a cache, and what continues from it."""
    values, saved = {}, {}
    for recomputed in (False, True):
        decoder = load(pair, name, quantization=kind, gradient_checkpointing=recomputed)
        watched = Watched(decoder)
        batch, soft = wired(decoder)
        with watched.hooks():
            loss = tf(
                token_losses(decoder.answer(batch, Injection(vectors=soft)).logits, batch.targets)
            )
        assert watched.runs == 4, "two layers read the prefix, and what follows it"
        loss.backward()
        assert watched.runs == (8 if recomputed else 4)
        assert soft.grad is not None
        values[recomputed] = (loss.detach(), soft.grad, generate(decoder))
        saved[recomputed] = watched.saved
    for found, expected in zip(values[True], values[False], strict=True):
        assert torch.equal(found, expected)
    # Plain layers keep nothing of what the last one would make of a prefix.
    assert saved[True] < saved[False] / 3.5


def test_a_filled_cache_gets_its_gradient_through_recomputed_layers(pair: Path) -> None:
    """Keys and values that come from elsewhere, as a deep prefix's do."""
    grads = []
    for recomputed in (False, True):
        decoder = load(pair, gradient_checkpointing=recomputed)
        torch.manual_seed(0)
        filled = [torch.randn(1, 1, 5, 16, requires_grad=True) for _ in range(2 * 2)]
        cache = DynamicCache(config=decoder.model.config)
        for layer in range(2):
            cache.update(filled[2 * layer], filled[2 * layer + 1], layer)
        output = decoder.model(input_ids=torch.tensor([[5, 9, 31]]), past_key_values=cache)
        assert cache.get_seq_length() == 5 + 3
        output.logits.square().sum().backward()
        grads.append([tensor.grad for tensor in filled])
        assert cache.get_seq_length() == 5 + 3, "backward appends nothing"
    assert all(bool(grad.any()) for grad in grads[0])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_cache_changed_in_place_is_refused(pair: Path) -> None:
    decoder = load(pair, gradient_checkpointing=True)
    cache = StaticCache(config=decoder.model.config, max_cache_len=8)
    with pytest.raises(ConfigError, match="decoders.qwen.gradient_checkpointing: .*StaticLayer"):
        decoder.model(input_ids=torch.tensor([[5, 9]]), past_key_values=cache)


def test_a_model_without_known_layers_is_refused(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "transformer_layers", lambda model: [])
    with pytest.raises(ConfigError, match=r"decoders\.qwen\.model: its .* does not show"):
        load(pair)


def test_a_quantised_checkpoint_is_not_parted(pair: Path) -> None:
    model = load(pair).model
    config = DecoderConfig(model="m", shard=2)
    assert sharding_problems("x", config, model, dtype=torch.float32) == []
    model.config.quantization_config = {"quant_method": "fp8"}
    (problem,) = sharding_problems("x", config, model, dtype=torch.float32)
    assert problem.startswith("decoders.x.shard: 2, but m is quantised already")


@pytest.mark.parametrize("kind", ["none", *QUANTISED])
def test_reading_leaves_a_decoder_as_it_was_loaded(pair: Path, kind: str) -> None:
    decoder = load(pair, quantization=kind, gradient_checkpointing=True)
    before = fingerprint(decoder.model)
    generate(decoder)
    loss_and_gradient(decoder)
    assert changed(before, fingerprint(decoder.model)) == []
    again = fingerprint(load(pair, quantization=kind).model)
    assert combined(again) == combined(before)
    assert "model.rotary_emb.inv_freq" in before, "a buffer that no checkpoint holds"
    # Another processor rounds that otherwise.
    elsewhere = {**before, "model.rotary_emb.inv_freq": "0"}
    assert combined(elsewhere) != combined(before)
    assert of_weights(decoder.model, elsewhere) == of_weights(decoder.model, before)
    assert of_weights(decoder.model, {**before, "model.norm.weight": "0"}) != of_weights(
        decoder.model, before
    )


CHANGES: dict[str, tuple[str, Callable[[Any], Tensor]]] = {
    "model.norm.weight": ("none", lambda model: model.model.norm.weight),
    "model.rotary_emb.inv_freq": ("none", lambda model: model.model.rotary_emb.inv_freq),
    "model.layers.1.mlp.up_proj.weight": ("nf4", lambda model: _up(model).weight),
    "model.layers.1.mlp.up_proj.weight.absmax": (
        "nf4",
        lambda model: _up(model).weight.quant_state.absmax,
    ),
    "model.layers.1.mlp.up_proj.weight.quant_map": (
        "nf4",
        lambda model: _up(model).weight.quant_state.code,
    ),
    "model.layers.1.mlp.up_proj.SCB": ("int8", lambda model: _up(model).weight.SCB),
}


def _up(model: Any) -> Any:
    return model.model.layers[1].mlp.up_proj


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_changed_number_is_found_and_named(pair: Path, name: str, dtype: torch.dtype) -> None:
    kind, pick = CHANGES[name]
    model = load(pair, quantization=kind, dtype=dtype).model
    before = fingerprint(model)
    with torch.no_grad():
        pick(model).view(-1)[-1] += 1
    now = fingerprint(model)
    # The tests' quantised scales are each layer's own, codes are one table that all may share.
    assert name in changed(before, now)
    assert {key.split(".")[-1] for key in changed(before, now)} == {name.split(".")[-1]}
    assert combined(now) != combined(before)


def test_trained_weights_are_no_part_of_the_fingerprint(pair: Path) -> None:
    model = load(pair).model
    model.model.norm.weight.requires_grad_(True)
    before = fingerprint(model)
    with torch.no_grad():
        model.model.norm.weight += 1
    assert changed(before, fingerprint(model)) == []
    assert "model.norm.weight" not in before


@pytest.mark.gpu
@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_on_a_gpu(pair: Path, kind: str) -> None:
    """LLM.int8() rounds activations too, so its gradient is near the exact one, not equal to it."""
    cuda = torch.device("cuda")
    config = DecoderConfig(model=str(pair / "qwen"), quantization=kind)
    decoder = load_decoder("qwen", config, dtype=torch.bfloat16, device=cuda)
    before = fingerprint(decoder.model)
    plain = load_decoder(
        "qwen", DecoderConfig(model=config.model), dtype=torch.bfloat16, device=cuda
    )
    embeds = decoder.model.get_input_embeddings()(torch.arange(5, 29, device=cuda)[None]).detach()
    grads = []
    for key, module in linears(decoder).items():
        plain.model.get_submodule(key).weight.data = dequantised(module, torch.bfloat16)
    for model in (decoder.model, plain.model):
        inputs = embeds.clone().requires_grad_(True)
        model(inputs_embeds=inputs).logits.float().logsumexp(-1).sum().backward()
        assert inputs.grad is not None
        grads.append(inputs.grad.float())
    assert float((grads[0] - grads[1]).norm() / grads[1].norm()) < 0.2
    assert changed(before, fingerprint(decoder.model)) == []
