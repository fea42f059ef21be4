"""Saving in the background: one in flight, whole or not at all, alike on every rank."""

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from latentwire.checkpointing import commit, state
from latentwire.checkpointing.components import to_state
from latentwire.checkpointing.manifest import content_problems, read_manifest
from latentwire.checkpointing.shards import write_tensors
from latentwire.checkpointing.state import Place
from latentwire.checkpointing.writer import CheckpointWriter, SaveError
from latentwire.config import CheckpointConfig, DecoderConfig
from latentwire.distributed.groups import Group, ProcessGroups
from latentwire.distributed.sharding import UnitState, export_parts
from latentwire.distributed.state_tensors import HostBuffers, own_rows, whole_tensor
from latentwire.distributed.topology import plan
from latentwire.testing import run_distributed

SHAPES = {"encoder.w": torch.Size([5, 3]), "encoder.refiner.b": torch.Size([1])}
"""Rows that three ranks do not share evenly, and fewer rows than ranks."""


class FakeUnit:
    """A unit whose every number is ``value``, plus its place in the tensor."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self.value = 0.0
        self.loaded: dict[str, Tensor] = {}

    def export_state(self, buffers: HostBuffers | None = None) -> UnitState:
        def read(name: str, moment: str | None) -> Tensor:
            whole = torch.arange(SHAPES[name].numel()).view(SHAPES[name]) + self.value
            return own_rows(whole + len(moment or ""), self._group)

        return export_parts(read, SHAPES, self._group, num_steps=7, buffers=buffers)

    def import_state(self, state: UnitState) -> None:
        assert state.num_steps == 7
        for part in ("weights", "first_moments", "second_moments"):
            for name, tensor in getattr(state, part).items():
                self.loaded[f"{part}.{name}"] = whole_tensor(tensor)


def open_writer(
    root: str, world_size: int, unit: FakeUnit | None = None, **settings: Any
) -> tuple[CheckpointWriter, FakeUnit, Group]:
    layout = plan({"d": DecoderConfig(model="d")}, placement="auto", world_size=world_size)
    world = ProcessGroups(layout, device=torch.device("cpu"), timeout=60).world
    unit = unit or FakeUnit(world)
    writer = CheckpointWriter(
        Path(root),
        {"encoder": unit},  # type: ignore[dict-item]
        {"encoder": world},
        world=world,
        settings=CheckpointConfig(**settings),
        decoders={"d": {"model": "d"}},
        config_text="run: {}\n",
        metric="em",
    )
    return writer, unit, world


def at(step: int) -> Place:
    return Place(stage="A", step=step, samples=12 * step)


def save_on_rank(rank: int, world_size: int, root: str) -> dict[str, Any]:
    writer, unit, world = open_writer(root, world_size, keep_last=2)
    with writer:
        for step in (1, 2, 3):
            unit.value = 100.0 * step
            writer.save(at(step))
            unit.value = -1.0  # training goes on while the save is in flight
    found = commit.newest(Path(root))
    assert found is not None
    state.restore(found, {"encoder": unit}, {"encoder": world})  # type: ignore[dict-item]
    return {key: tensor.flatten().tolist() for key, tensor in unit.loaded.items()}


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_step_holds_what_the_units_were_when_it_was_saved(
    world_size: int, tmp_path: Path
) -> None:
    for loaded in run_distributed(save_on_rank, world_size, str(tmp_path)):
        for part, more in (("weights", 0), ("first_moments", 7), ("second_moments", 10)):
            expected = [300.0 + more + i for i in range(15)]
            assert loaded[f"{part}.encoder.w"] == expected
            assert loaded[f"{part}.encoder.refiner.b"] == [300.0 + more]
    assert [step.number for step in commit.published(tmp_path)] == [2, 3]
    step = commit.published(tmp_path)[-1]
    manifest = read_manifest(step.path)
    assert content_problems(step.path, manifest, manifest.files) == []
    assert manifest.units == {name: list(range(world_size)) for name in ("encoder", "refiner")}
    assert manifest.optimizer_steps == {"encoder": 7}
    on_disk = {str(p.relative_to(step.path)) for p in step.path.rglob("*") if p.is_file()}
    assert on_disk == {*manifest.files, "manifest.json"}, "no file that the manifest does not know"
    assert len(list((step.path / "rng").iterdir())) == world_size
    assert (tmp_path / "latest").read_text() == f"{step.name}\n"


def write_beside_gpus_on_rank(rank: int, world_size: int, root: str) -> dict[str, Any]:
    _, unit, world = open_writer(root, world_size)
    tensors = unit.export_state().weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        for name in ("current_stream", "current_device", "synchronize", "Stream"):
            patch.setattr(torch.cuda, name, None)
        write_tensors(Path(root), tensors, world)
    return {name: whole_tensor(tensor).tolist() for name, tensor in tensors.items()}


def test_writing_touches_no_gpu(tmp_path: Path) -> None:
    """The thread that writes has the first GPU as its own, whatever the process has."""
    (expected,) = run_distributed(write_beside_gpus_on_rank, 1, str(tmp_path))
    (file,) = tmp_path.glob("*.safetensors")
    assert {name: tensor.tolist() for name, tensor in load_file(file).items()} == expected


def save_with_trouble_on_rank(
    rank: int, world_size: int, root: str, who: int, on_error: str, where: str
) -> dict[str, Any]:
    writer, unit, world = open_writer(root, world_size, on_error=on_error)
    asked: list[bool] = []
    writer._failed = lambda: asked.append(True)
    writer.save(at(1))
    writer.wait()

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    said = number = None
    with pytest.MonkeyPatch.context() as patch:
        if rank == who:
            # Inside the engine's own exchange, as on a full disk; or before any of it.
            owner, name = {
                "data": (HuggingFaceStorageWriter, "write_data"),
                "folders": (CheckpointWriter, "_make_folders"),
            }[where]
            patch.setattr(owner, name, fail)
        writer.save(at(2))
        try:
            writer.wait()
        except SaveError as error:
            said, number = str(error), error.errno
    was_saved = writer.is_saved
    writer.save(at(3))
    writer.close()
    assert writer.is_saved and not was_saved
    return {"said": said, "errno": number, "asked": bool(asked)}


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize(
    ("on_error", "where"), [("stop", "data"), ("continue", "data"), ("stop", "folders")]
)
def test_a_full_disk_on_one_rank_is_every_ranks_word_and_leaves_nothing(
    who: int, on_error: str, where: str, tmp_path: Path
) -> None:
    ranks = run_distributed(save_with_trouble_on_rank, 2, str(tmp_path), who, on_error, where)
    for found in ranks:
        assert found["asked"] == (on_error == "stop")
        if on_error == "stop":
            assert found["errno"] == errno.ENOSPC
            assert f"rank {who}: No space left on device: somewhere" in found["said"]
        else:
            assert found["said"] is None
    # The next save works, on the same groups.
    assert [step.number for step in commit.published(tmp_path)] == [1, 3]
    assert not list(tmp_path.rglob("*.tmp"))


def slow_save_on_rank(rank: int, world_size: int, root: str) -> dict[str, Any]:
    """A file system call that hangs: training goes on, the next save waits."""
    writer, unit, world = open_writer(root, world_size)
    go_on = threading.Event()
    plain = commit.publish

    def slow(*args: Any) -> None:
        assert go_on.wait(60)
        plain(*args)

    commit.publish = slow  # type: ignore[assignment]
    writer.save(at(1))
    in_flight = commit.newest(Path(root)) is None
    # Whoever trains can still talk: the save has groups of its own.
    torch.distributed.all_reduce(torch.ones(1), group=world.bookkeeping)
    go_on.set()
    writer.save(at(2))
    one = commit.newest(Path(root))
    writer.close()
    return {"in flight": in_flight, "then": one.number if one else None}


def test_training_goes_on_while_a_slow_disk_saves(tmp_path: Path) -> None:
    for found in run_distributed(slow_save_on_rank, 2, str(tmp_path)):
        assert found["in flight"] is True
        assert found["then"] in (1, 2)
    assert [step.number for step in commit.published(tmp_path)] == [1, 2]


def error_on_rank(rank: int, world_size: int, root: str) -> dict[str, Any]:
    writer, unit, world = open_writer(root, world_size)
    with pytest.raises(KeyboardInterrupt), writer:
        writer.save(at(1))
        raise KeyboardInterrupt
    return {"there": commit.newest(Path(root)) is not None}


def test_an_error_lets_the_save_in_flight_end(tmp_path: Path) -> None:
    run_distributed(error_on_rank, 2, str(tmp_path))
    assert [step.number for step in commit.published(tmp_path)] == [1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "stageA").mkdir(mode=0o555)
    (found,) = run_distributed(permission_on_rank, 1, str(tmp_path))
    assert "Permission denied" in found["said"]


def permission_on_rank(rank: int, world_size: int, root: str) -> dict[str, Any]:
    writer, unit, world = open_writer(root, world_size, background=False)
    try:
        writer.save(at(1))
    except SaveError as error:
        return {"said": str(error)}
    return {"said": ""}


def refused_on_rank(rank: int, world_size: int, root: str) -> dict[str, Any]:
    writer, unit, world = open_writer(root, world_size, background=False)

    def refuse(step: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(step.path))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SaveError) as caught:
        patch.setattr(commit, "draft", refuse)
        writer.save(at(1))
    return {"said": str(caught.value), "errno": caught.value.errno}


def test_a_refused_file_system_call_is_every_ranks_word(tmp_path: Path) -> None:
    for found in run_distributed(refused_on_rank, 2, str(tmp_path)):
        assert found["errno"] == errno.EACCES
        assert "rank 0: Permission denied" in found["said"] and "step-00000001" in found["said"]


def test_keys_say_what_they_hold() -> None:
    tensors = {"weight.encoder.w": torch.ones(1), "exp_avg.encoder.w": torch.zeros(1)}
    found = to_state(tensors, num_steps=3)
    assert list(found.weights) == list(found.first_moments) == ["encoder.w"]
    assert found.second_moments == {} and found.num_steps == 3


def test_a_published_step_is_refused(tmp_path: Path) -> None:
    (found,) = run_distributed(twice_on_rank, 1, str(tmp_path))
    assert "exists already" in json.dumps(found)


def twice_on_rank(rank: int, world_size: int, root: str) -> dict[str, Any]:
    writer, unit, world = open_writer(root, world_size)
    writer.save(at(1))
    try:
        writer.save(at(1))
        writer.close()
    except SaveError as error:
        return {"said": str(error)}
    return {"said": ""}
