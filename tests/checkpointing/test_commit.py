"""Publication of steps: what counts as a checkpoint, and what a resumed run may change."""

import json
from pathlib import Path

import pytest
import torch
from conftest import small_overrides
from latentwire.checkpointing.store import read_unit, write_unit

from latentwire import config_file
from latentwire.checkpointing import commit
from latentwire.checkpointing.state import changed_keys
from latentwire.config import ConfigError, DecoderConfig
from latentwire.distributed.groups import ProcessGroups
from latentwire.distributed.sharding import UnitState
from latentwire.distributed.topology import plan
from latentwire.testing import run_distributed


def unit_state(value: float) -> UnitState:
    tensors = {"a": torch.full((3, 2), value), "b": torch.full((2,), -value)}
    moments = {name: tensor * 2 for name, tensor in tensors.items()}
    return UnitState(weights=tensors, first_moments=moments, second_moments=tensors, num_steps=7)


def publish_on_rank(rank: int, world_size: int, root: str) -> list[bool]:
    layout = plan({"d": DecoderConfig(model="d")}, placement="auto", world_size=world_size)
    world = ProcessGroups(layout, device=torch.device("cpu"), timeout=60).world
    published = []
    for step in (1, 2, 2):
        with commit.publish(Path(root), stage="A", step=step, world=world) as folder:
            published.append(folder is not None)
            if folder is not None:
                write_unit(folder / f"unit{rank}", unit_state(rank + 1.0))
    try:
        with commit.publish(Path(root), stage="A", step=3, world=world) as folder:
            raise KeyError("interrupted")
    except KeyError:
        published.append(False)
    return published


def test_steps_are_published_once_and_whole(tmp_path: Path) -> None:
    assert run_distributed(publish_on_rank, 2, str(tmp_path)) == [[True, True, False, False]] * 2
    found = commit.published(tmp_path)
    assert [(step.stage, step.number) for step in found] == [("A", 1), ("A", 2)]
    assert (tmp_path / "stageA" / "step-00000003.tmp").is_dir(), "an interrupted one is not found"
    state = read_unit(found[-1].path / "unit1")
    assert torch.equal(state.weights["a"], torch.full((3, 2), 2.0))
    assert torch.equal(state.first_moments["b"], torch.full((2,), -4.0))
    assert state.num_steps == 7
    assert read_unit(found[-1].path / "unit1", with_optimizer=False).first_moments == {}

    # A damaged step is none: the run that comes to it again writes it anew.
    (found[0].path / commit.MANIFEST).write_text("{")
    assert run_distributed(publish_on_rank, 2, str(tmp_path)) == [[True, False, False, False]] * 2
    assert commit.published(tmp_path) == found


def fake_step(root: Path, stage: str, number: int) -> Path:
    folder = root / f"stage{stage}" / f"step-{number:08d}"
    write_unit(folder / "unit", unit_state(1.0))
    commit._write_manifest(folder, stage=stage, step=number)
    return folder


def test_the_newest_valid_step_is_found(tmp_path: Path) -> None:
    assert commit.newest(tmp_path) is None
    fake_step(tmp_path, "A", 900)
    older = fake_step(tmp_path, "B", 5)
    newest = fake_step(tmp_path, "B", 10)
    assert commit.newest(tmp_path) == commit.Step(path=newest, stage="B", number=10)
    manifest = newest / commit.MANIFEST
    good = manifest.read_text()
    for damage in ("", "{", "[]", json.dumps({"format": 99, "files": {}}), '{"format": 1}'):
        manifest.write_text(damage)
        assert commit.newest(tmp_path) == commit.Step(path=older, stage="B", number=5), damage
    manifest.write_text(good)
    with (newest / "unit" / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    assert commit.newest(tmp_path) == commit.Step(path=older, stage="B", number=5)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = fake_step(tmp_path, "A", 1) / "unit"
    (folder / "second_moments.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="second_moments.safetensors cannot be read"):
        read_unit(folder)


@pytest.mark.parametrize(
    ("override", "may"),
    [
        ("placement=colocated", True),
        ("decoders.llama.ranks=1", True),
        ("checkpoint.interval=7", True),
        ("diagnostics.log_interval=3", True),
        ("validation.interval=7", True),
        ("validation.patience=2", True),
        ("validation.samples=7", False),
        ("validation.metric=f1", False),
        ("train.stage_b.steps=9", True),
        ("train.stage_b.steps=1", False),
        ("wire.ratio=6", False),
        ("run.seed=1", False),
        ("decoders.qwen=null", False),
        ("decoders.llama.weight=2", False),
        ("eval.samples=24", False),
    ],
)
def test_what_a_resumed_run_may_change(
    override: str, may: bool, pair: Path, tmp_path: Path
) -> None:
    overrides = small_overrides(pair, tmp_path, "validation.interval=5")
    before = config_file.load("smoke", overrides)
    now = config_file.load("smoke", [*overrides, override])
    changes = changed_keys(before, now)
    assert (changes == []) == may, changes
    if not may:
        assert changes[0].startswith(override.split("=")[0])
