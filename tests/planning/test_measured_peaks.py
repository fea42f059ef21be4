"""The predicted peak of a training step is the measured one, within 15 %."""

from pathlib import Path
from typing import Any

import peaks
import pytest
import torch
from conftest import REPOSITORY
from transformers import AutoConfig, AutoModelForCausalLM

from latentwire import config_file
from latentwire.data import tiny
from latentwire.distributed import topology
from latentwire.planning.batch import Lengths
from latentwire.planning.memory import predict
from latentwire.planning.scaling import known

SIZES = {
    "llama": {
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 8192,
        "tie_word_embeddings": True,
    },
    "qwen": {
        "model_type": "qwen2",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 5,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 8192,
        "tie_word_embeddings": False,
    },
}
"""Two families, 21.5 and 27.2 million parameters."""
FSDP = ["sharding.backend=fsdp"]
ZERO = {
    stage: [
        "sharding.backend=deepspeed",
        f"sharding.ds_config={REPOSITORY / 'ds_configs' / f'zero{stage}.json'}",
    ]
    for stage in (2, 3)
}
CHECKPOINTED = [
    "encoder.activation_checkpointing=true",
    "decoders.llama.gradient_checkpointing=true",
    "decoders.qwen.gradient_checkpointing=true",
]


def setting(batch: int, words: int, *overrides: str) -> dict[str, Any]:
    return {"batch": batch, "questions": 4, "words": words, "overrides": list(overrides)}


SETTINGS = {
    "short texts": setting(32, 40, *FSDP),
    "long texts": setting(16, 140, *FSDP),
    "checkpointed": setting(16, 100, *FSDP, *CHECKPOINTED, "objectives.kd=1"),
    "deep prefix": setting(16, 60, *FSDP, "adapter.use_deep_prefix=true"),
    "norms by part": setting(16, 40, *FSDP, "diagnostics.grad_diag_interval=2"),
    "ZeRO 2": setting(24, 60, *ZERO[2]),
    "ZeRO 3": setting(16, 60, *ZERO[3]),
}
"""What is measured, on two ranks with a decoder each."""


@pytest.fixture(scope="module")
def wide_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random models of ``SIZES`` with one tokenizer."""
    root = tmp_path_factory.mktemp("wide")
    spec = tiny.load_specs(config_file.PACKAGED / "tiny.yaml")["llama"]
    tokenizer = tiny.build_tokenizer(spec, seed=0)
    for name, size in SIZES.items():
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            **size,
            max_position_embeddings=1024,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        tiny.save(AutoModelForCausalLM.from_config(config), tokenizer, root / name)
    return root


def overrides(pair: Path, setting: dict[str, Any]) -> list[str]:
    return [
        f"encoder.model={pair / 'llama'}",
        f"decoders.llama.model={pair / 'llama'}",
        f"decoders.qwen.model={pair / 'qwen'}",
        "decoders.llama.bos=always",
        "decoders.qwen.bos=always",
        f"train.batch_size={setting['batch']}",
        f"data.questions_per_context={setting['questions']}",
        "train.stage_a.ratios=[]",
        "train.stage_b.ratios=[]",
        "train.stage_a.encoder_start=0",
        "train.stage_a.warmup_text_latent_prob=0",
        "wire.pooling=mean",
        "wire.d_z=256",
        "adapter.use_deep_prefix=false",
        "diagnostics.grad_diag_interval=0",
        "diagnostics.health_interval=0",
        *setting["overrides"],
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_predicted_peak_is_the_measured_one(wide_pair: Path, tmp_path: Path) -> None:
    settings = {
        name: one | {"overrides": overrides(wide_pair, one)} for name, one in SETTINGS.items()
    }
    found = peaks.measure(tmp_path, settings, world_size=2, timeout=540)
    lines, worst = [], 0.0
    for name, one in settings.items():
        config = config_file.load("smoke", one["overrides"])
        layout = topology.plan(config.decoders, placement="separate", world_size=2)
        lengths = Lengths(**found[0][name]["lengths"])
        for rank, memory in enumerate(predict(config, known(config), layout, lengths)):
            measured = found[rank][name]["peak"]
            error = memory.peak.total / measured - 1
            worst = max(worst, abs(error))
            lines.append(
                f"{name:<14} rank {rank}: measured {measured / 2**20:6.0f} MiB, predicted "
                f"{memory.peak.total / 2**20:6.0f} at {memory.peak.name}, {error:+.1%}; at rest "
                f"{found[rank][name]['at_rest'] / 2**20:.0f}, {memory.at_rest / 2**20:.0f}"
            )
    print("\n".join(lines))
    assert worst < 0.15, "\n".join(lines)
