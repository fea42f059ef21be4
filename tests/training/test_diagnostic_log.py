"""A diagnostics stream at a path of the user's own."""

import os
from pathlib import Path

import pytest
from conftest import small_overrides

from latentwire import config_file
from latentwire.config import ConfigError
from latentwire.training.preflight import Plan, preflight
from latentwire.training.run_folder import prepare
from latentwire.training.status import diagnostics_path, read_status, write_status


def plan(pair: Path, tmp_path: Path, path: str | Path) -> Plan:
    overrides = small_overrides(pair, tmp_path, f"diagnostics.diagnostic_log={path}")
    return preflight(config_file.load("smoke", overrides), world_size=1)


def test_the_path_is_the_callers_and_its_folder_is_made(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = plan(pair, tmp_path, "my logs/a.jsonl")
    assert found.diagnostics == Path("my logs/a.jsonl")
    assert not (tmp_path / "my logs").exists(), "looking makes nothing"
    prepare(found, wipe=False)
    assert (tmp_path / "my logs").is_dir()
    assert plan(pair, tmp_path, "null").diagnostics == tmp_path / "runs" / "test" / (
        "diagnostics.jsonl"
    )


def test_the_status_tells_the_path_until_it_changes(tmp_path: Path) -> None:
    assert diagnostics_path(tmp_path) == tmp_path / "diagnostics.jsonl"
    write_status(tmp_path, state="running", diagnostics=Path("x.jsonl"))
    write_status(tmp_path, state="failed", code=1)
    assert read_status(tmp_path)["files"]["diagnostics"] == "x.jsonl"
    assert diagnostics_path(tmp_path) == Path("x.jsonl")
    write_status(tmp_path, state="running", diagnostics=tmp_path / "diagnostics.jsonl")
    assert diagnostics_path(tmp_path) == tmp_path / "diagnostics.jsonl"


def refused(pair: Path, tmp_path: Path, path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(pair, tmp_path, path)
    (problem,) = caught.value.problems
    assert problem.startswith("diagnostics.diagnostic_log: ")
    return problem


def test_what_cannot_be_the_stream_is_refused(pair: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("# mine\n")
    assert "is no diagnostics stream" in refused(pair, tmp_path, notes)
    assert "is a folder" in refused(pair, tmp_path, tmp_path)
    assert "cannot be a folder" in refused(pair, tmp_path, notes / "a.jsonl")
    assert notes.read_text() == "# mine\n"
    blank = tmp_path / "blank.txt"
    blank.write_text("\n\n# mine\n")
    assert "is no diagnostics stream" in refused(pair, tmp_path, blank)


def test_what_has_no_end_is_not_looked_for_one(pair: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/full")):
        assert "is no regular file" in refused(pair, tmp_path, path)


@pytest.mark.parametrize("before", ["", '{"schema": 1, "run": "other"}\n', '{"schema": 1, "ru'])
def test_a_stream_goes_on(pair: Path, tmp_path: Path, before: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(before)
    assert plan(pair, tmp_path, log).diagnostics == log
