"""A decoder's head by itself: used where it makes the model's own logits, and only there."""

import logging
from dataclasses import replace
from pathlib import Path

import jobs
import pytest
import torch
from conftest import small_overrides
from transformers import Gemma2Config, Gemma2ForCausalLM

from latentwire import config_file
from latentwire.config import DecoderConfig
from latentwire.data.batch import PrefixRow, PromptRow, prompt_batch
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.decoders.loading import load_decoder
from latentwire.objectives import budget, row_chunks
from latentwire.objectives.tokens import token_losses
from latentwire.testing import run_distributed
from latentwire.wire.backbones import transformer_layers

CPU = torch.device("cpu")


def row(*tokens: int) -> PromptRow:
    prefix = PrefixRow(before=(3, 4, 5))
    return PromptRow(prefix=prefix, after=tokens, answer=(9, 8))


def test_logits_are_those_of_the_whole_model(pair: Path) -> None:
    decoder = load_decoder(
        "llama", DecoderConfig(model=str(pair / "llama")), dtype=torch.float32, device=CPU
    )
    assert decoder.head is not None
    ids = torch.tensor([[3, 4, 5, 6, 7, 9, 8]])
    with torch.no_grad():
        expected = decoder.model(input_ids=ids).logits[0, 4:6]
        said = decoder.answer(prompt_batch([row(6, 7)], pad=0))
    assert said.last.shape == (2, decoder.inputs.hidden_size)
    torch.testing.assert_close(said.logits, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("is_recomputed", [False, True])
def test_what_only_fills_the_cache_ends_with_it(pair: Path, *, is_recomputed: bool) -> None:
    """Nobody reads what the last layer makes of a prefix; its keys and values are all the same."""
    config = DecoderConfig(model=str(pair / "llama"), gradient_checkpointing=is_recomputed)
    decoder = load_decoder("llama", config, dtype=torch.float32, device=CPU)
    assert decoder.head is not None and decoder.head.num_cached == decoder.num_layers
    lengths: list[int] = []
    layers = transformer_layers(decoder.model)
    layers[-1].mlp.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    batch = prompt_batch([row(6, 7), row(6, 7, 9)], pad=0)
    with torch.no_grad():
        short = decoder.read(batch, None, with_prefixes=True)
        assert lengths == []
        decoder.answer(batch)
    assert lengths == [batch.suffix_ids.shape[1]]
    decoder.head = replace(decoder.head, num_cached=None)
    whole = decoder.read(batch, None, with_prefixes=True)
    assert short.prefixes is not None and whole.prefixes is not None
    for found, expected in zip(short.prefixes, whole.prefixes, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_logits_that_change_after_the_head_are_made_whole(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            final_logit_softcapping=0.1,
            attn_logit_softcapping=None,
        )
    )
    with caplog.at_level(logging.INFO, logger="latentwire"):
        decoder = FrozenDecoder("capped", model, None)
    assert decoder.head is None
    assert [r.message for r in caplog.records if "made whole" in r.message]
    batch = prompt_batch(
        [
            row(6, 7),
            row(
                6,
            ),
        ],
        pad=0,
    )
    said = decoder.answer(batch)
    assert said.last.shape == (4, 40) and said.logits.abs().max() <= 0.1
    ids = torch.tensor([[3, 4, 5, 6, 7, 9, 8]])
    with torch.no_grad():
        expected = token_losses(model(input_ids=ids).logits[0, 4:6], batch.targets[:2])
    losses, _ = row_chunks.token_scores(said, batch.targets)
    torch.testing.assert_close(losses[:2].detach(), expected, atol=1e-4, rtol=1e-4)


_MEASURED = ("grad_tf", "grad_kd", "grad_ae")


def stepped_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, list[float]]:
    """Of each gradient of a step, and of each objective's norm: the largest difference between
    whole logits and three rows at a time, and its own size."""
    whole_bytes = budget.CHUNK_BYTES
    job = jobs.make_job(config_file.load("smoke", overrides), 1)
    step = jobs.make_stage(job.config).plan(1)
    found = []
    for num_bytes in (whole_bytes, 3 * 4 * 450):
        budget.CHUNK_BYTES = num_bytes
        gradients = jobs.job_gradients(job, step)
        rows = jobs.make_trainer(job).step(step).rows()
        norms = {
            f"{row['decoder']} {key}": torch.tensor(row[key]) for row in rows for key in _MEASURED
        }
        found.append(gradients | norms)
    budget.CHUNK_BYTES = whole_bytes
    whole, chunked = found
    return {
        name: [float((chunked[name] - value).abs().max()), float(value.abs().max())]
        for name, value in whole.items()
    }


def test_a_step_in_chunks_is_a_step_with_whole_logits(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(
        pair, tmp_path, "objectives.kd=0.7", "objectives.ae=0.2", "sharding.backend=fsdp"
    )
    (found,) = run_distributed(stepped_on_rank, 1, overrides)
    assert {f"{name} {key}" for name in ("llama", "qwen") for key in _MEASURED} <= found.keys()
    for name, (difference, size) in found.items():
        assert difference <= 1e-5 * size, name
    assert any(difference for difference, _ in found.values()), "both went the same way"
