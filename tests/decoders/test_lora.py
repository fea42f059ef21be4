"""LoRA updates of a decoder: right, only where a wire brings them, and trained with its unit."""

from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from conftest import small_overrides

from latentwire import config_file
from latentwire.config import DecoderConfig, LoraConfig
from latentwire.data.loader import text_batch
from latentwire.decoders.fingerprint import changed, fingerprint
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.decoders.loading import load_decoder
from latentwire.distributed.state_tensors import whole_tensor
from latentwire.testing import run_distributed

CPU = torch.device("cpu")


def load(pair: Path, **settings: Any) -> FrozenDecoder:
    config = DecoderConfig(model=str(pair / "llama"), **settings)
    return load_decoder("llama", config, dtype=torch.float32, device=CPU)


def test_updates_are_the_weights_they_stand_for(pair: Path) -> None:
    decoder, merged = load(pair, lora=LoraConfig(rank=2, targets="q_proj,down_proj")), load(pair)
    assert decoder.lora is not None
    names = list(decoder.lora.features)
    assert len(names) == 4
    generator = torch.Generator().manual_seed(0)
    updates = {
        name: (
            0.1 * torch.randn(2, num_in, generator=generator),
            0.1 * torch.randn(num_out, 2, generator=generator),
        )
        for name, (num_in, num_out) in decoder.lora.features.items()
    }
    for name, (down, up) in updates.items():
        merged.model.get_submodule(name).weight.data += up @ down
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        with decoder.lora.using(updates):
            found = decoder.model(input_ids=ids).logits
        torch.testing.assert_close(found, merged.model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
        assert torch.equal(
            decoder.model(input_ids=ids).logits, load(pair).model(input_ids=ids).logits
        ), "without updates it is its frozen self"


def test_a_name_that_no_layer_has_is_refused(pair: Path) -> None:
    with pytest.raises(ValueError, match="'nothing' is the end of no linear layer's name"):
        load(pair, lora=LoraConfig(rank=2, targets="nothing"))


def trained_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, Any]:
    config = config_file.load("smoke", overrides)
    job = jobs.make_job(config, world_size)
    before = {name: fingerprint(d.model) for name, d in job.decoders.items()}
    prompts = job.prompts["qwen"]
    stage = jobs.make_stage(config)
    text = text_batch([prompts.text(e) for e in stage.plan(1).examples], pad=prompts.pad)
    said = job.decoders["qwen"].answer(text).logits
    trainer = jobs.make_trainer(job)
    for step in range(1, 4):
        trainer.step(stage.plan(step))
    state = job.units["adapter_qwen"].export_state()
    ups = {k: float(whole_tensor(v).abs().max()) for k, v in state.weights.items() if ".up_" in k}
    same = torch.equal(said, job.decoders["qwen"].answer(text).logits)
    differ = [n for n, d in job.decoders.items() if changed(before[n], fingerprint(d.model))]
    return {"ups": ups, "text unchanged": same, "changed": differ}


@pytest.mark.parametrize("recomputed", ["false", "true"])
def test_updates_are_trained_and_the_decoder_is_not(
    recomputed: str, pair: Path, tmp_path: Path
) -> None:
    overrides = small_overrides(
        pair,
        tmp_path,
        "decoders.qwen.lora.rank=2",
        f"decoders.qwen.gradient_checkpointing={recomputed}",
        "placement=colocated",
        "sharding.backend=fsdp",
    )
    (found,) = run_distributed(trained_on_rank, 1, overrides)
    assert len(found["ups"]) == 14
    assert all(size > 0 for size in found["ups"].values()), "every layer's update has moved"
    assert found["text unchanged"], "text is read without them"
    assert not found["changed"]


def gradients_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, Any]:
    config = config_file.load("smoke", overrides)
    job = jobs.make_job(config, world_size)
    with torch.no_grad():
        for name, parameter in job.wire.units.named_parameters():
            if ".up_" in name:
                parameter.fill_(0.01)
    return jobs.job_gradients(job, jobs.make_stage(config).plan(1))


def test_recomputed_layers_run_again_with_their_updates(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(
        pair, tmp_path, "decoders.qwen.lora.rank=2", "placement=colocated", "sharding.backend=fsdp"
    )
    (expected,) = run_distributed(gradients_on_rank, 1, overrides)
    again = [*overrides, "decoders.qwen.gradient_checkpointing=true"]
    (found,) = run_distributed(gradients_on_rank, 1, again)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6)
