"""A run writes its report when it ends, and no failure of that is a failure of the run."""

import json
import logging
from pathlib import Path
from typing import Any, cast

import pytest
import report_cases

from latentwire.training import stage_c
from latentwire.training.preflight import Plan


class Folder:
    """As much of a plan as the report needs."""

    def __init__(self, run_folder: Path) -> None:
        self.run_folder = run_folder


def test_the_report_says_finished_before_the_status_does(tmp_path: Path) -> None:
    folder = report_cases.write_run(tmp_path / "r")
    (folder / "status.json").write_text(json.dumps({"state": "running"}))
    stage_c._write_report(cast(Plan, Folder(folder)))
    assert "<dd>finished</dd>" in (folder / "report.html").read_text()


def test_a_report_that_fails_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Path:
        raise KeyError("a key")

    monkeypatch.setattr(stage_c, "write_report", broken)
    monkeypatch.setattr(logging.getLogger("latentwire"), "propagate", True)
    stage_c._write_report(cast(Plan, Folder(tmp_path)))
    assert "no report was made: KeyError: 'a key'" in caplog.text
