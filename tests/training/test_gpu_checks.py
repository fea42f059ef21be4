"""What is asked of a node's GPUs before anything is loaded; none is needed to ask."""

from pathlib import Path

import pytest
import torch
from conftest import small_overrides

from latentwire import config_file
from latentwire.config import ConfigError
from latentwire.training.preflight import preflight


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with two GPUs that have no bf16 but emulate it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )


def problems(pair: Path, tmp_path: Path, *more: str) -> list[str]:
    overrides = small_overrides(pair, tmp_path, "sharding.backend=fsdp", *more)
    try:
        preflight(config_file.load("smoke", overrides), world_size=3)
    except ConfigError as error:
        return list(error.problems)
    return []


@pytest.mark.usefixtures("gpus")
def test_every_process_needs_a_gpu_of_its_own(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert problems(pair, tmp_path) == []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    (problem,) = problems(pair, tmp_path)
    assert problem.startswith("--nproc-per-node: 3 processes on a node with 2 GPU(s)")
    assert "NPROC=2" in problem and "CUDA_VISIBLE_DEVICES=''" in problem
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert problems(pair, tmp_path) == [], "any number of processes share the CPU"


@pytest.mark.usefixtures("gpus")
def test_bf16_that_is_emulated_is_refused(pair: Path, tmp_path: Path) -> None:
    found = problems(pair, tmp_path, "precision=bf16", "decoders.qwen.precision=bf16")
    assert found == [
        "precision: this GPU has no bf16; use fp32",
        "decoders.qwen.precision: this GPU has no bf16; use fp32",
    ]
    assert problems(pair, tmp_path) == []
