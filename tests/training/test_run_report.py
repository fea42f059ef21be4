"""A run writes its report when it ends, and no failure of that is a failure of the run."""

import json
import logging
from pathlib import Path
from typing import Any, cast

import pytest
import report_cases
from conftest import small_overrides

from latentwire import config_file
from latentwire.checkpointing.writer import CheckpointWriter, SaveError
from latentwire.testing import run_distributed
from latentwire.training import run, stage_c
from latentwire.training.preflight import Plan, preflight


class Folder:
    """As much of a plan as the report needs."""

    def __init__(self, run_folder: Path) -> None:
        self.run_folder = run_folder


def test_the_report_says_finished_before_the_status_does(tmp_path: Path) -> None:
    folder = report_cases.write_run(tmp_path / "r")
    (folder / "status.json").write_text(json.dumps({"state": "running"}))
    stage_c._write_report(cast(Plan, Folder(folder)), "finished")
    assert "<dd>finished</dd>" in (folder / "report.html").read_text()


def test_a_report_that_fails_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Path:
        raise KeyError("a key")

    monkeypatch.setattr(stage_c, "write_report", broken)
    monkeypatch.setattr(logging.getLogger("latentwire"), "propagate", True)
    stage_c._write_report(cast(Plan, Folder(tmp_path)), "finished")
    assert "no report was made: KeyError: 'a key'" in caplog.text


def train_without_saving(rank: int, world_size: int, overrides: list[str]) -> str:
    def fail(self: CheckpointWriter, copied: object, step: object) -> int:
        raise SaveError("no room")

    CheckpointWriter._publish = fail  # type: ignore[method-assign]
    return run.train(preflight(config_file.load("smoke", overrides), world_size=world_size)).state


def test_a_wire_of_which_nothing_could_be_saved_is_called_so(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(pair, tmp_path, "checkpoint.on_error=continue")
    assert run_distributed(train_without_saving, 1, overrides) == ["finished"]
    metrics = json.loads((tmp_path / "runs" / "test" / "metrics.json").read_text())
    assert metrics["checkpoint"] == {"stage": None, "step": 0, "manifest": None, "which": "unsaved"}
    said = "the wire as it was trained, of which no step could be saved"
    assert said in (tmp_path / "runs" / "test" / "pipeline.log").read_text()
    assert said in (tmp_path / "runs" / "test" / "report.html").read_text()
