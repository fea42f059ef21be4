"""A run goes on with the decoders that it was trained with, and with no others."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import small_overrides
from safetensors.torch import load_file, save_file

from latentwire import config_file
from latentwire.checkpointing.commit import newest
from latentwire.checkpointing.manifest import read_manifest
from latentwire.config import ConfigError
from latentwire.decoders.identity import identity_problems
from latentwire.distributed.sharding import UnitState, check_fits
from latentwire.testing import run_distributed
from latentwire.training import run
from latentwire.training.preflight import preflight


def train_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, Any]:
    config = config_file.load("smoke", overrides)
    try:
        return {"state": run.train(preflight(config, world_size=world_size)).state}
    except ConfigError as error:
        return {"refused": error.problems}


def test_a_changed_decoder_is_refused_by_name_and_nothing_is_lost(
    pair: Path, tmp_path: Path
) -> None:
    own = tmp_path / "pair"
    shutil.copytree(pair, own)
    short = ("train.stage_a.steps=2", "train.stage_b.steps=0")
    assert run_distributed(train_on_rank, 1, small_overrides(own, tmp_path, *short)) == [
        {"state": "finished"}
    ]
    step = newest(tmp_path / "checkpoints" / "test")
    assert step is not None
    known = read_manifest(step.path).decoders
    assert known["qwen"]["model"] == str(own / "qwen")
    assert all(len(known[name]["parameters"]) == 64 for name in ("llama", "qwen"))

    path = own / "qwen" / "model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    weights[name][..., 0] += 1e-3
    save_file(weights, path, metadata={"format": "pt"})
    longer = small_overrides(own, tmp_path, "train.stage_a.steps=3", "train.stage_b.steps=0")
    config = (tmp_path / "runs" / "test" / "config.yaml").read_text()
    (found,) = run_distributed(train_on_rank, 1, longer)
    assert (tmp_path / "runs" / "test" / "config.yaml").read_text() == config
    (problem,) = found["refused"]
    assert problem.startswith("decoders.qwen.model: ") and "its weights changed" in problem
    assert step.name in problem and "restore that model, or start a new run.tag" in problem
    assert newest(tmp_path / "checkpoints" / "test") == step
    assert json.loads((step.path / "trainer.json").read_text())["step"] == 2


def test_what_cannot_be_compared_is_not() -> None:
    before = {"d": {"model": "m", "revision": "1", "shapes": "a", "parameters": None}}
    now = {"d": {"model": "m", "revision": "1", "shapes": "a", "parameters": "w"}}
    assert identity_problems(before, now, where="here") == []
    now["d"]["shapes"] = "b"
    (problem,) = identity_problems(before, now, where="here")
    assert "its tensors' names, shapes or types changed" in problem


def test_what_an_earlier_version_did_not_say_is_not_taken_for_the_same(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("latentwire"), "propagate", True)
    now = {"d": {"model": "m", "revision": "1", "shapes": "a", "parameters": "w"}}
    before = {"d": {"model": "m", "revision": "1", "shapes": "a", "weights": "of before"}}
    assert identity_problems(before, now, where="here") == []
    assert "here is of an earlier version and says nothing of the model's weights" in caplog.text


def test_inputs_of_another_size_are_refused() -> None:
    """Soft prompts have the size of a decoder's inputs, which no weight of theirs holds."""

    def of_size(rms: float) -> dict[str, Any]:
        return {"d": {"model": "m", "revision": "1", "shape": {"embedding_rms": rms}}}

    keys = {"shapes": None, "parameters": None}
    before, close, scaled = (of_size(rms) for rms in (0.02, 0.0201, 0.9))
    for each in (before, close, scaled):
        each["d"] |= keys
    assert identity_problems(before, close, where="here") == []
    (problem,) = identity_problems(before, scaled, where="here")
    assert "its input embeddings' size changed" in problem
    del before["d"]["shape"]
    assert identity_problems(before, scaled, where="here") == [], "not known of older ones"


@pytest.mark.parametrize(("has", "wants"), [("a", "ab"), ("ab", "a")])
def test_a_missing_or_extra_tensor_is_named(has: str, wants: str) -> None:
    import torch

    weights = {name: torch.zeros(2) for name in has}
    state = UnitState(weights=weights, first_moments={}, second_moments={}, num_steps=0)
    shapes = {name: torch.Size([2]) for name in wants}
    with pytest.raises(ConfigError, match="unit 'encoder'.*'b'.*are in one of them only"):
        check_fits(state, shapes, unit="encoder")
