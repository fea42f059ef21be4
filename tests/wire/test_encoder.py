"""The encoder: activation checkpointing recomputes its layers and changes nothing."""

from pathlib import Path

import pytest
import torch
from conftest import small_overrides
from torch import Tensor

from latentwire import config_file
from latentwire.data.encoder_texts import EncoderTokenizer, WireText
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
    overrides = small_overrides(pair, tmp_path, f"encoder.lora.rank={rank}")
    expected, num_calls = gradients(overrides)
    found, num_calls_again = gradients([*overrides, "encoder.activation_checkpointing=true"])
    assert num_calls == 2, "the small model has two layers"
    assert num_calls_again == 4, "each layer runs again in backward"
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert grad.abs().sum() > 0, name
        torch.testing.assert_close(found[name], grad, rtol=1e-6, atol=1e-7)
