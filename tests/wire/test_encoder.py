"""The encoder: what its backbones read, what its refiner sees, and whose latents are whose."""

from pathlib import Path

import jobs
import pytest
import torch
import transformers as hf
from conftest import small_overrides
from torch import Tensor

from latentwire import config_file
from latentwire.config import EncoderConfig
from latentwire.data.encoder_texts import EncoderTokenizer, WireText
from latentwire.data.loader import global_batch
from latentwire.wire.backbones import make_backbone
from latentwire.wire.encoder import Encoder
from latentwire.wire.wire import build_wire

TEXTS = ["Ana Ruiz lives in Lisbon.", "The garden of Tom Berg is large and green."]


def gradients(overrides: list[str]) -> tuple[dict[str, Tensor], int]:
    """Gradients of a sum over the wire, and how often a transformer layer ran."""
    config = config_file.load("smoke", overrides)
    tokenizer = EncoderTokenizer(config, window=1024)
    cpu = torch.device("cpu")
    wire = build_wire(config, {}, num_lead=len(tokenizer.lead), device=cpu)
    if config.encoder.lora.rank:
        # LoRA starts at zero, where half of its gradients are zero.
        for name, parameter in wire.shared.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.01)
    calls = []
    for layer in wire.shared.encoder.layers():  # type: ignore[operator, union-attr]
        # What is inside: hooks of the layer itself stay outside the recomputation.
        next(layer.children()).register_forward_pre_hook(lambda *arguments: calls.append(1))
    longest = max(tokenizer.num_latents(text) for text in TEXTS)
    wires = [WireText(text=text) for text in TEXTS]
    latents = wire.encode(tokenizer.batch(wires, rows=len(TEXTS), max_latents=longest))
    latents.square().sum().backward()  # type: ignore[no-untyped-call]
    named = wire.shared.named_parameters()
    return {name: p.grad for name, p in named if p.grad is not None}, len(calls)


@pytest.mark.parametrize("rank", [0, 4])
def test_activation_checkpointing_recomputes_and_changes_nothing(
    rank: int, pair: Path, tmp_path: Path
) -> None:
    # Mean pooling has no weights that the first step does not reach.
    more = (f"encoder.lora.rank={rank}", "wire.pooling=mean")
    overrides = small_overrides(pair, tmp_path, *more)
    expected, num_calls = gradients(overrides)
    found, num_calls_again = gradients([*overrides, "encoder.activation_checkpointing=true"])
    assert num_calls == 2, "the small model has two layers"
    assert num_calls_again == 4, "each layer runs again in backward"
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert grad.abs().sum() > 0, name
        torch.testing.assert_close(found[name], grad, rtol=1e-6, atol=1e-7)


def make_encoder(pair: Path, tmp_path: Path, *overrides: str) -> tuple[Encoder, EncoderTokenizer]:
    """An encoder without sharding, in training mode, and its tokenizer."""
    config = config_file.load("smoke", small_overrides(pair, tmp_path, *overrides))
    tokenizer = EncoderTokenizer(config, window=1024)
    wire = build_wire(config, {}, num_lead=len(tokenizer.lead), device=torch.device("cpu"))
    encoder: Encoder = wire.shared.encoder  # type: ignore[assignment]
    return encoder.train(), tokenizer


def latents_of(
    encoder: Encoder, tokenizer: EncoderTokenizer, wires: list[WireText], *, more: int = 0
) -> Tensor:
    """[wires, private + latents + more, d_z]"""
    longest = max(tokenizer.num_latents(wire.text, wire.ratio) for wire in wires)
    latents: Tensor = encoder(tokenizer.batch(wires, rows=len(wires), max_latents=longest + more))
    return latents


def settled(module: torch.nn.Module, *, std: float = 0.05) -> None:
    """Weights as training leaves them: what starts as the identity is it no more."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator))


STQ = ("encoder.kind=stq", "wire.pooling=mean")
BYTE = ("encoder.kind=byte", "wire.ratio=8", "encoder.byte.width=24", "encoder.byte.heads=2")


def test_a_frozen_model_stays_in_evaluation_and_untrained(pair: Path, tmp_path: Path) -> None:
    encoder, tokenizer = make_encoder(pair, tmp_path, *STQ)
    encoder.train()
    assert encoder.backbone.projections.training
    assert not any(module.training for module in encoder.backbone.model.modules())
    groups = encoder.parameter_groups()
    assert groups["encoder"] == []
    names = {name for name, _ in groups["adapter"]}
    # Three states of a model of two layers: embeddings, and what comes after each layer.
    expected = {f"backbone.norms.{n}.{part}" for n in range(3) for part in ("weight", "bias")}
    expected |= {f"backbone.projections.{n}.weight" for n in range(3)}
    assert names == expected | {"pooling.project.weight", "pooling.project.bias"}
    latents_of(encoder, tokenizer, [WireText(text=TEXTS[0])]).square().sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in encoder.backbone.model.parameters())
    for name, parameter in groups["adapter"]:
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("chosen", [(0,), (2,), (0, 1)])
def test_only_the_chosen_layers_are_read(
    chosen: tuple[int, ...], pair: Path, tmp_path: Path
) -> None:
    encoder, tokenizer = make_encoder(pair, tmp_path, *STQ, f"encoder.layers={list(chosen)}")
    wires = [WireText(text=TEXTS[0])]
    before = latents_of(encoder, tokenizer, wires)
    ids = torch.tensor([tokenizer.lead + tokenizer.ids(TEXTS[0])])
    states = encoder.backbone.model(ids, output_hidden_states=True).hidden_states
    by_hand = sum(
        project(norm(states[layer]))
        for layer, norm, project in zip(
            chosen, encoder.backbone.norms, encoder.backbone.projections, strict=True
        )
    )
    texts = tokenizer.batch(wires, rows=1, max_latents=before.shape[1])
    torch.testing.assert_close(before, encoder.pooling(by_hand[:, len(tokenizer.lead) :], texts))
    # A layer above the chosen ones has no say, one below has.
    for number, layer in enumerate(encoder.layers(), start=1):
        with torch.no_grad():
            next(iter(layer.parameters())).add_(1.0)
        after = latents_of(encoder, tokenizer, wires)
        assert torch.equal(after, before) == (number > max(chosen)), number
        before = after


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_who_sees_whom_among_bytes(attention: str, pair: Path, tmp_path: Path) -> None:
    encoder, tokenizer = make_encoder(pair, tmp_path, *BYTE, f"encoder.attention={attention}")
    first, second = "Mira lives in Orsa.", "Mira lives in Orsu."
    place = first.index("a.")
    wires = [WireText(text=text, ratio=1) for text in (first, second)]
    one, other = latents_of(encoder, tokenizer, wires)
    moved = [not torch.allclose(a, b, atol=1e-5) for a, b in zip(one, other, strict=True)]
    seen = [attention == "bidirectional"] * place + [True] * (len(first) - place)
    assert moved == seen


@pytest.mark.parametrize("overrides", [(), STQ, BYTE])
def test_rows_do_not_depend_on_what_else_is_read(
    overrides: tuple[str, ...], pair: Path, tmp_path: Path
) -> None:
    """Of one text several ratios, beside a longer text, with places to spare."""
    encoder, tokenizer = make_encoder(
        pair, tmp_path, *overrides, "wire.latent_private_len=2", "wire.refiner.layers=2"
    )
    settled(encoder)
    wires = [
        WireText(text=TEXTS[0], ratio=2),
        WireText(text=TEXTS[1], ratio=3),
        WireText(text=TEXTS[0], ratio=5),
    ]
    together = latents_of(encoder, tokenizer, wires, more=3)
    for row, wire in enumerate(wires):
        alone = latents_of(encoder, tokenizer, [wire])[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-4, atol=1e-5)


def test_refiner_starts_as_the_identity_and_relates_latents(pair: Path, tmp_path: Path) -> None:
    encoder, tokenizer = make_encoder(pair, tmp_path, "wire.refiner.layers=2")
    wires = [WireText(text=TEXTS[1])]
    refined = latents_of(encoder, tokenizer, wires)
    blocks, encoder.refiner = encoder.refiner, torch.nn.ModuleList()
    assert torch.equal(latents_of(encoder, tokenizer, wires), refined)
    encoder.refiner = blocks
    settled(blocks)
    assert not torch.allclose(latents_of(encoder, tokenizer, wires), refined)


@pytest.mark.parametrize("num_layers", [0, 2])
def test_dropped_latents_are_zero_and_nothing_else_is(
    num_layers: int, pair: Path, tmp_path: Path
) -> None:
    """Zero for the decoders, and nothing to the latents that stay: not even the refiner carries
    a dropped one on."""
    encoder, tokenizer = make_encoder(
        pair, tmp_path, f"wire.refiner.layers={num_layers}", "wire.latent_private_len=1"
    )
    settled(encoder)
    count = tokenizer.num_latents(TEXTS[1])
    keep = tuple(number % 3 != 1 for number in range(count))
    found = latents_of(encoder, tokenizer, [WireText(text=TEXTS[1], keep=keep)])
    is_zero = (found[0] == 0).all(-1)
    assert is_zero.tolist() == [False] * 2 + [not kept for kept in keep]
    if not num_layers:
        whole = latents_of(encoder, tokenizer, [WireText(text=TEXTS[1])])
        assert torch.equal(found[~is_zero[None]], whole[~is_zero[None]])
    pooled: list[Tensor] = []

    def capture(module: torch.nn.Module, inputs: object, output: Tensor) -> None:
        output.retain_grad()
        pooled.append(output)

    encoder.pooling.register_forward_hook(capture)
    latents_of(encoder, tokenizer, [WireText(text=TEXTS[1], keep=keep)]).square().sum().backward()  # type: ignore[no-untyped-call]
    assert pooled[0].grad is not None
    assert pooled[0].grad[0].any(-1).tolist() == list(keep)


@pytest.mark.parametrize("num_layers", [0, 1])
def test_a_decoder_reads_its_own_private_latents_only(
    num_layers: int, pair: Path, tmp_path: Path
) -> None:
    overrides = ("wire.latent_private_len=3", f"wire.refiner.layers={num_layers}")
    reference = jobs.SingleProcess(small_overrides(pair, tmp_path, *overrides))
    settled(reference.wire)
    encoder: Encoder = reference.wire.shared.encoder  # type: ignore[assignment]
    queries = encoder.private.queries  # type: ignore[union-attr]
    examples = jobs.make_stage(reference.config).plan(1).examples
    for number, name in enumerate(reference.decoders):
        batch = global_batch(examples, reference.prompts[name])
        vectors = reference.inject(name, batch).vectors
        (grad,) = torch.autograd.grad(vectors.square().sum() + vectors.sum(), queries)
        read = grad.any(-1).view(2, 3)
        assert read[number].all(), name
        assert not read[1 - number].any(), name


@pytest.mark.parametrize("family", ["Llama", "Phi", "GPT2"])
def test_pretrained_models_own_dropout_is_off(family: str) -> None:
    settings: dict[str, object] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 64,
        **({"n_head": 4} if family == "GPT2" else {"attention_dropout": 0.5}),
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.5),
    }
    model = hf.AutoModel.from_config(getattr(hf, f"{family}Config")(**settings))
    ids, real = torch.arange(12).view(2, 6), torch.ones(2, 6, dtype=torch.bool)
    with torch.no_grad():
        own = model.train()(input_ids=ids)[0]
        assert not torch.equal(own, model(input_ids=ids)[0]), "it has some"
        read = make_backbone(EncoderConfig(), model).train()
        torch.testing.assert_close(read(ids, real), read(ids, real), atol=0, rtol=0)
