"""``--dry-run`` counts the parameters of the units that a run really builds."""

import re
from pathlib import Path

import jobs
import pytest
import torch
import yaml
from conftest import small_overrides
from gates import ENCODERS

from latentwire import config_file
from latentwire.training.dry_run import describe
from latentwire.training.preflight import preflight

DEEP = "adapter.use_deep_prefix=true"
CASES = {
    **ENCODERS,
    "LoRA": ["encoder.lora.rank=4"],
    "deep": [DEEP, "adapter.use_soft_prompt=false"],
    "both, 4": [DEEP, "adapter.deep_prefix_len=4", "wire.latent_private_len=2"],
    "refiner": ["wire.refiner.layers=2", "wire.pooling=block"],
    "gist": ["gist.use_gist_head=true", "gist.hidden=32", "gist.layers=2"],
    "decoder LoRA": [
        "decoders.qwen.lora.rank=2",
        "decoders.llama.lora.rank=3",
        "decoders.llama.lora.targets=q_proj",
    ],
}


def described(text: str) -> dict[str, tuple[int, int]]:
    """Of each unit and decoder the number of its parameters, and of the trained ones."""
    found = {}
    for name, number, kind in re.findall(r"^(.*?) +([\d,]+) parameters \((.*)\)$", text, re.M):
        whole = int(number.replace(",", ""))
        trained = {"frozen": 0, "all trained": whole}.get(kind)
        if trained is None:
            trained = int(kind.removesuffix(" trained").replace(",", ""))
        found[name] = (whole, trained)
    return found


def counted(module: torch.nn.Module) -> tuple[int, int]:
    parameters = list(module.parameters())
    return (
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
    )


@pytest.mark.parametrize("name", CASES)
def test_counts_are_those_of_the_built_units(name: str, pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(pair, tmp_path, "sharding.backend=fsdp", *CASES[name])
    found = described(describe(preflight(config_file.load("smoke", overrides), world_size=2)))
    built = jobs.SingleProcess(overrides)
    expected = {"encoder": counted(built.wire.shared)}
    for decoder_name, decoder in built.decoders.items():
        expected[f"decoder {decoder_name}"] = counted(decoder.model)
        expected[f"adapter {decoder_name}"] = counted(built.wire.units[decoder_name])
    assert found == expected
    assert found["decoder llama"][1] == 0
    assert found["encoder"][1] > 0


def test_it_says_what_a_run_would_do_and_does_nothing(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(pair, tmp_path, "sharding.backend=fsdp")
    plan = preflight(config_file.load("smoke", overrides), world_size=2)
    before = sorted(tmp_path.rglob("*"))
    text = describe(plan)
    assert sorted(tmp_path.rglob("*")) == before
    resolved, rest = text.split(plan.topology.table())
    assert config_file.from_tree(yaml.safe_load(resolved)) == plan.config
    assert described(rest).keys() == described(text).keys()
