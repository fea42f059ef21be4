"""Steps on disk: publication, discovery, retention, and what a resumed run may change."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import small_overrides

from latentwire import config_file
from latentwire.checkpointing import commit, manifest
from latentwire.checkpointing.changes import changed_keys
from latentwire.checkpointing.commit import Step, step_at
from latentwire.checkpointing.manifest import Manifest, describe_file


def publish(root: Path, stage: str, number: int) -> Step:
    """A step of one small file."""
    step = step_at(root, stage, number)
    folder = commit.draft(step)
    (folder / "unit").mkdir()
    (folder / "unit" / "data.json").write_text(f'"{stage} {number}"')
    files = {"unit/data.json": describe_file(folder / "unit" / "data.json")}
    commit.publish(
        step,
        folder,
        Manifest(
            stage=stage,
            step=number,
            units={},
            optimizer_steps={},
            decoders={},
            versions={},
            files=files,
        ),
    )
    return step


def test_a_step_is_published_whole_and_never_again(tmp_path: Path) -> None:
    step = publish(tmp_path, "A", 3)
    assert commit.published(tmp_path) == [step] and commit.read_latest(tmp_path) == step
    assert not step.path.with_suffix(".tmp").exists()
    with pytest.raises(FileExistsError):
        commit.draft(step)
    # A link in a step's place is not followed, and not overwritten.
    link = step_at(tmp_path, "A", 4)
    link.path.symlink_to(step.path, target_is_directory=True)
    assert commit.published(tmp_path) == [step]
    with pytest.raises(FileExistsError):
        commit.draft(link)


def test_the_newest_valid_step_is_found(tmp_path: Path) -> None:
    assert commit.newest(tmp_path) is None and commit.read_latest(tmp_path) is None
    publish(tmp_path, "A", 900)
    older, newest = publish(tmp_path, "B", 5), publish(tmp_path, "B", 10)
    assert commit.newest(tmp_path) == newest
    path = newest.path / manifest.FILE
    good = path.read_text()
    damages = ["", "{", "[]", json.dumps({"format": 99, "files": {}}), '{"format": 2}']
    outside = json.loads(good)
    outside["files"] = {"../../../etc/passwd": {"bytes": 1, "sha256": "", "tensors": {}}}
    for damage in [*damages, json.dumps(outside)]:
        path.write_text(damage)
        assert commit.newest(tmp_path) == older, damage
        assert commit.read_latest(tmp_path) is None, damage
    path.write_text(good)
    with (newest.path / "unit" / "data.json").open("ab") as file:
        file.write(b"x")
    assert commit.newest(tmp_path) == older
    commit.repair_latest(tmp_path, older)
    assert commit.read_latest(tmp_path) == older


def test_only_steps_are_steps(tmp_path: Path) -> None:
    step = publish(tmp_path, "A", 100_000_000)
    stage = step.path.parent
    (stage / "step-00000002").write_text("a file")
    (stage / "step-2").mkdir()
    (stage / "notes.txt").write_text("mine")
    (stage / "step-00000003.tmp").mkdir()
    assert commit.steps(tmp_path) == [step]
    elsewhere = tmp_path / "elsewhere"
    publish(elsewhere, "A", 1)
    (tmp_path / "stageB").symlink_to(elsewhere / "stageA", target_is_directory=True)
    assert commit.steps(tmp_path) == [step]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("stageB/step-00000007", 7),
        ("runs/x/ckpt/stageB/step-00000007/", 7),
        ("stageB/step-7", None),
        ("stageC/step-00000007", None),
        ("step-00000007", None),
        ("", None),
    ],
)
def test_a_step_is_named_by_its_last_two_folders(
    name: str, number: int | None, tmp_path: Path
) -> None:
    expected = None if number is None else step_at(tmp_path, "B", number)
    assert commit.step_named(tmp_path, name) == expected


def test_leftovers_go_and_nothing_else(tmp_path: Path) -> None:
    step = publish(tmp_path, "A", 1)
    stage = step.path.parent
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "data").write_text("keep")
    (stage / "step-00000002.tmp").mkdir()
    (stage / "step-00000003.old").mkdir()
    (stage / "step-00000004.tmp").symlink_to(outside, target_is_directory=True)
    (stage / "step-00000005.tmp").write_text("a file")
    (stage / "step-00000006.damaged-1").mkdir()
    (stage / "notes.tmp").mkdir()
    assert [path.name[:13] for path in commit.clean(tmp_path)] == [
        f"step-0000000{number}" for number in (2, 3, 4, 5)
    ]
    assert (outside / "data").read_text() == "keep"
    kept = sorted(path.name for path in stage.iterdir())
    assert kept == ["notes.tmp", "step-00000001", "step-00000006.damaged-1"]


def test_a_step_that_is_set_aside_makes_way(tmp_path: Path) -> None:
    for number in (1, 2):
        step = publish(tmp_path, "A", 7)
        assert commit.set_aside(step, "damaged").name == f"step-00000007.damaged-{number}"
        assert commit.published(tmp_path) == []


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "left"),
    [
        (0, 0, ["A2", "A4", "A6", "B2", "B4"]),
        (1, 0, ["A4", "B4"]),
        (2, 0, ["A4", "B2", "B4"]),
        (1, 3, ["A4", "A6", "B4"]),
        (9, 0, ["A2", "A4", "A6", "B2", "B4"]),
    ],
)
def test_retention_keeps_the_last_the_best_and_every_nth(
    keep_last: int, keep_every: int, left: list[str], tmp_path: Path
) -> None:
    found = [publish(tmp_path, stage, n) for stage, n in [*(("A", n) for n in (2, 4, 6))]]
    found += [publish(tmp_path, "B", number) for number in (2, 4)]
    best = found[1]
    commit.retain(tmp_path, keep_last=keep_last, keep_every=keep_every, protected={best})
    assert [f"{step.stage}{step.number}" for step in commit.published(tmp_path)] == left
    assert not list(tmp_path.glob("stage*/*.old"))


def test_a_step_that_cannot_be_removed_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = [publish(tmp_path, "A", number) for number in (1, 2)]

    def refuse(*paths: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(commit.os, "rename", refuse)
    assert commit.retain(tmp_path, keep_last=1, keep_every=0, protected=()) == []
    assert "could not be removed" in caplog.text
    assert commit.published(tmp_path) == found


@pytest.mark.parametrize(
    ("override", "may"),
    [
        ("placement=colocated", True),
        ("decoders.llama.ranks=1", True),
        ("checkpoint.interval=7", True),
        ("checkpoint.keep_last=7", True),
        ("checkpoint.background=false", True),
        ("checkpoint.on_error=continue", True),
        ("checkpoint.root=elsewhere", False),
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
        ("decoders.llama.gradient_checkpointing=true", True),
        ("encoder.activation_checkpointing=true", True),
        ("eval.samples=24", False),
        ("eval.batch_size=6", True),
        ("train.accumulation=2", True),
        ("train.batch_size=24", False),
        ("teacher.folder=elsewhere", True),
        ("teacher.top_k=8", False),
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


def test_a_resumed_run_keeps_the_order_of_its_decoders(pair: Path, tmp_path: Path) -> None:
    before = config_file.load("smoke", small_overrides(pair, tmp_path))
    now = replace(before, decoders=dict(reversed(before.decoders.items())))
    assert changed_keys(before, now)[0].startswith("decoders: ")
