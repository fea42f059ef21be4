"""Where a run starts: what is damaged is put aside or refused, with names and a way on."""

import errno
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from latentwire import config_file
from latentwire.checkpointing import commit, manifest
from latentwire.checkpointing.commit import Step, step_at
from latentwire.checkpointing.manifest import Manifest, describe_file
from latentwire.checkpointing.state import Place, place_tree
from latentwire.config import Config, ConfigError, DecoderConfig
from latentwire.distributed.groups import ProcessGroups
from latentwire.distributed.topology import plan
from latentwire.testing import run_distributed
from latentwire.training import start as start_module
from latentwire.training.preflight import preflight, recorded_config
from latentwire.training.start import agreed_start
from latentwire.training.unreadable import UnreadableError

TENSORS = "encoder/shard-00001-model-00001-of-00001.safetensors"


def publish(root: Path, stage: str, number: int) -> Step:
    """A step with one tensor file and its place."""
    step = step_at(root, stage, number)
    folder = commit.draft(step)
    (folder / "encoder").mkdir()
    save_file({"weight.a": torch.full((8,), float(number))}, folder / TENSORS)
    place = Place(stage=stage, step=number, samples=12 * number)
    (folder / "trainer.json").write_text(json.dumps(place_tree(place)))
    files = {name: describe_file(folder / name) for name in (TENSORS, "trainer.json")}
    written = Manifest(
        stage=stage,
        step=number,
        units={"encoder": [0]},
        optimizer_steps={"encoder": number},
        decoders={},
        versions={},
        files=files,
    )
    commit.publish(step, folder, written)
    return step


def start_on_rank(
    rank: int, world_size: int, root: str, wanted: str | None, mends: bool
) -> dict[str, Any]:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("latentwire").addHandler(handler)
    logging.getLogger("latentwire").setLevel(logging.INFO)
    layout = plan({"d": DecoderConfig(model="d")}, placement="auto", world_size=world_size)
    world = ProcessGroups(layout, device=torch.device("cpu"), timeout=60).world
    try:
        found = agreed_start(Path(root), world, wanted=wanted, mends=mends)
    except ConfigError as error:
        return {"refused": str(error)}
    at = None if found is None else [found[0].name, found[1].samples]
    return {"at": at, "said": "\n".join(said)}


def start(root: Path, *, wanted: str | None = None, mends: bool = True) -> dict[str, Any]:
    """What both ranks of a world of two come to; rank 0's words."""
    ranks = run_distributed(start_on_rank, 2, str(root), wanted, mends)
    assert ranks[0].get("at") == ranks[1].get("at")
    assert ranks[0].get("refused") == ranks[1].get("refused")
    found: dict[str, Any] = ranks[0]
    return found


def flip(path: Path, offset: int = -3) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path: Path) -> None:
    text = path.read_text()
    assert '"encoder": 2' in text
    path.write_text(text.replace('"encoder": 2', '"encoder": 3'))


DAMAGES = {
    "a flipped byte": lambda step: flip(step.path / TENSORS),
    "a truncated shard": lambda step: truncate(step.path / TENSORS),
    "a lost file": lambda step: (step.path / "trainer.json").unlink(),
    "a torn manifest": lambda step: tear(step.path / manifest.FILE),
    "a changed manifest": lambda step: change(step.path / manifest.FILE),
    "no manifest": lambda step: (step.path / manifest.FILE).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_step_is_put_aside_and_the_next_one_used(
    damage: str, tmp_path: Path
) -> None:
    older, newest = publish(tmp_path, "A", 4), publish(tmp_path, "B", 2)
    DAMAGES[damage](newest)
    found = start(tmp_path)
    assert found["at"] == [older.name, 48]
    assert "stageB/step-00000002 IS DAMAGED" in found["said"]
    assert f"GOING ON FROM {older.name}" in found["said"]
    file = TENSORS if damage in ("a flipped byte", "a truncated shard") else ".json"
    assert file in found["said"]
    if damage == "a flipped byte":
        assert "weight.a" in found["said"]
    assert [path.name for path in (tmp_path / "stageB").iterdir()] == ["step-00000002.damaged-1"]
    assert commit.read_latest(tmp_path) == older


def unreadable_on_rank(rank: int, world_size: int, root: str, who: int, what: str) -> str:
    def fail(*args: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO), f"{root}/it")

    layout = plan({"d": DecoderConfig(model="d")}, placement="auto", world_size=world_size)
    world = ProcessGroups(layout, device=torch.device("cpu"), timeout=60).world
    with pytest.MonkeyPatch.context() as patch:
        if rank == who:
            patch.setattr(commit if hasattr(commit, what) else start_module, what, fail)
        try:
            agreed_start(Path(root), world)
        except UnreadableError as error:
            return str(error)
    return ""


@pytest.mark.parametrize(
    ("who", "what"),
    [
        (0, "content_problems"),
        (1, "content_problems"),
        (0, "problems"),
        (0, "steps"),
        (0, "read_place"),
    ],
)
def test_a_step_that_one_rank_cannot_read_is_refused_and_stays(
    who: int, what: str, tmp_path: Path
) -> None:
    older, newest = publish(tmp_path, "A", 4), publish(tmp_path, "B", 2)
    said = run_distributed(unreadable_on_rank, 2, str(tmp_path), who, what)
    assert said[0] == said[1]
    assert f"rank {who} cannot read {tmp_path}/it: Input/output error" in said[0]
    assert "nothing was put aside" in said[0]
    assert commit.published(tmp_path) == [older, newest]


def test_without_a_run_there_is_nothing_to_start_from(tmp_path: Path) -> None:
    assert start(tmp_path) == {"at": None, "said": ""}


def test_another_runs_step_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    own, other = tmp_path / "b", tmp_path / "a"
    mine, theirs = publish(own, "B", 2), publish(other, "B", 2)
    later = publish(own, "B", 4)
    refused = start(own, wanted=str(theirs.path))["refused"]
    assert "is no checkpoint of this run" in refused and later.path.exists()
    assert start(own, wanted=str(mine.path))["at"] == [mine.name, 24]


def test_a_torn_configuration_gives_way_to_the_checkpoints(tmp_path: Path, recipe: str) -> None:
    run, kept = tmp_path / "run", publish(tmp_path / "saved", "A", 1).path / "config.yaml"
    config = config_file.load(recipe)
    kept.write_text(yaml.safe_dump(config_file.to_tree(config)))
    run.mkdir()
    for torn in ("", "run: [", "half a line"):
        (run / "config.yaml").write_text(torn)
        assert recorded_config(run, tmp_path / "saved") == config
        with pytest.raises(ConfigError, match="config.yaml cannot be read"):
            recorded_config(run, tmp_path / "none")


def test_an_evaluation_mends_nothing(tmp_path: Path) -> None:
    older, newest = publish(tmp_path, "A", 4), publish(tmp_path, "B", 2)
    flip(newest.path / TENSORS)
    before = sorted(tmp_path.rglob("*"))
    assert start(tmp_path, mends=False)["at"] == [older.name, 48]
    assert sorted(tmp_path.rglob("*")) == before


def test_where_nothing_is_whole_the_run_does_not_start_over_by_itself(tmp_path: Path) -> None:
    for number in (1, 2):
        flip(publish(tmp_path, "A", number).path / TENSORS)
    assert "--fresh --overwrite" in start(tmp_path)["refused"]
    assert len(commit.steps(tmp_path)) == 2


def test_an_unknown_format_is_refused_and_stays(tmp_path: Path) -> None:
    publish(tmp_path, "A", 1)
    newest = publish(tmp_path, "A", 2)
    path = newest.path / manifest.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 3}))
    refused = start(tmp_path)["refused"]
    assert str(path) in refused and "the version that wrote it" in refused
    assert newest.path.is_dir()


def test_the_user_may_choose_an_older_step(tmp_path: Path) -> None:
    for stage, number in (("A", 2), ("A", 4), ("B", 2)):
        publish(tmp_path, stage, number)
    found = start(tmp_path, wanted=str(tmp_path / "stageA" / "step-00000002"))
    assert found["at"] == ["stageA/step-00000002", 24]
    names = sorted(path.name for path in tmp_path.glob("stage*/*"))
    assert names == [
        "step-00000002",
        "step-00000002.superseded-1",
        "step-00000004.superseded-1",
    ]
    assert (tmp_path / "latest").read_text() == "stageA/step-00000002\n"


def test_a_step_that_is_not_there_or_damaged_cannot_be_chosen(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        publish(tmp_path, "A", number)
    refused = start(tmp_path, wanted="stageA/step-00000007")["refused"]
    assert "there are stageA/step-00000003, stageA/step-00000002" in refused
    flip(tmp_path / "stageA" / "step-00000002" / TENSORS)
    refused = start(tmp_path, wanted="stageA/step-00000002")["refused"]
    assert TENSORS in refused
    assert "choose another step: stageA/step-00000003, stageA/step-00000001" in refused
    assert len(commit.steps(tmp_path)) == 3


def test_leftovers_and_strangers_do_not_matter(tmp_path: Path) -> None:
    step = publish(tmp_path, "A", 1)
    (tmp_path / "stageA" / "step-00000002.tmp" / "encoder").mkdir(parents=True)
    (tmp_path / "stageA" / "step-00000009").symlink_to(step.path, target_is_directory=True)
    (step.path / "stray.txt").write_text("mine")
    found = start(tmp_path)
    assert found["at"] == [step.name, 12]
    assert "step-00000002.tmp" in found["said"] and "IS DAMAGED" not in found["said"]
    assert not (tmp_path / "stageA" / "step-00000002.tmp").exists()
    assert (step.path / "stray.txt").exists()


def test_more_of_stage_a_is_refused_where_it_would_not_be_trained(
    small_config: Config, tmp_path: Path
) -> None:
    run = preflight(small_config, world_size=1)
    run.run_folder.mkdir(parents=True)
    (run.run_folder / "config.yaml").write_text(yaml.safe_dump(config_file.to_tree(small_config)))
    stage = replace(small_config.train.stage_a, steps=(small_config.train.stage_a.steps or 0) + 5)
    longer = replace(small_config, train=replace(small_config.train, stage_a=stage))
    publish(run.checkpoint_folder, "A", 4)
    preflight(longer, world_size=1)
    publish(run.checkpoint_folder, "B", 2)
    preflight(small_config, world_size=1)
    with pytest.raises(ConfigError, match=r"train\.stage_a\.steps: .*in Stage B already"):
        preflight(longer, world_size=1)
    preflight(longer, world_size=1, resume_from="stageA/step-00000004")
