"""Reading diagnostics: torn lines, kinds, files that grow or are replaced, stable DataFrames."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import stream_cases as driver

from latentwire import diagnostics
from latentwire.diagnostics.reading import COLUMNS, stream_path


def lines(*found: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in found)


ONE, TWO = driver.step_row("A", 1, 0, "one"), driver.step_row("A", 2, 0, "one")


def test_rows_are_what_was_written(tmp_path: Path) -> None:
    written = list(driver.run_rows())
    path = driver.write(tmp_path / "diagnostics.jsonl", written)
    assert list(diagnostics.rows(path)) == written
    assert list(diagnostics.rows(tmp_path)) == written, "a run's folder will do"
    health = list(diagnostics.rows(path, kind="health"))
    assert health == [row for row in written if row["kind"] == "health"] and health


@pytest.mark.parametrize("torn", ['{"stage": "A", "st', "{", "\0\0\0", '"text'])
def test_a_torn_last_line_is_left_out(
    tmp_path: Path, torn: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(lines(ONE) + torn)
    assert list(diagnostics.rows(path)) == [ONE]
    assert not caplog.records


def test_a_bad_line_inside_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("latentwire"), "propagate", True)
    path = tmp_path / "d.jsonl"
    path.write_text(lines(ONE) + '{"tor\n3\n\n' + lines(TWO))
    assert list(diagnostics.rows(path)) == [ONE, TWO]
    assert "2 lines are no rows, the first is line 2" in caplog.text


def test_the_status_tells_where_the_file_is(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere.jsonl"
    run.mkdir()
    assert stream_path(run) == run / "diagnostics.jsonl"
    status = {"files": {"diagnostics": str(elsewhere)}}
    (run / "status.json").write_text(json.dumps(status))
    assert stream_path(run) == elsewhere
    (run / "diagnostics.jsonl").write_text("")
    assert stream_path(run) == run / "diagnostics.jsonl", "the run was moved"
    elsewhere.write_text("")
    assert stream_path(run) == elsewhere
    elsewhere.unlink()
    os.mkfifo(elsewhere)
    assert stream_path(run) == run / "diagnostics.jsonl", "no plain file is not opened"
    (run / "diagnostics.jsonl").unlink()
    assert stream_path(run) == run / "diagnostics.jsonl"
    with pytest.raises(FileNotFoundError):
        list(diagnostics.rows(tmp_path / "nowhere.jsonl"))


def test_a_growing_file_gives_each_whole_line_once(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    tail = diagnostics.Tail(path)
    assert tail.poll() == []
    text = lines(ONE, TWO)
    cut = len(lines(ONE)) + 7
    path.write_text(text[:cut])
    assert tail.poll() == [ONE]
    assert tail.poll() == []
    with path.open("a") as file:
        file.write(text[cut:])
    assert tail.poll() == [TWO]
    assert tail.generation == 0


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("length", [1, 6])
def test_a_replaced_file_is_read_from_its_start(
    tmp_path: Path, in_place: bool, length: int
) -> None:
    path = driver.write(tmp_path / "d.jsonl", [ONE, TWO])
    tail = diagnostics.Tail(path)
    assert len(tail.poll()) == 2
    again = [driver.step_row("A", 1, 0, "one", tf=9.0)] * length
    if in_place:
        driver.write(path, again)
    else:
        driver.write(tmp_path / "fresh", again).replace(path)
    assert tail.poll() == again
    assert tail.generation == 1


def test_a_followed_file_ends_with_what_was_written_last(tmp_path: Path) -> None:
    path = driver.write(tmp_path / "d.jsonl", [ONE])
    found = []
    looks = []

    def ended() -> bool:
        looks.append(len(found))
        if len(looks) == 2:
            driver.write(path, [ONE, TWO])
        return len(looks) == 2

    for row in diagnostics.follow(path, ended=ended, interval=0):
        found.append(row)
    assert found == [ONE, TWO] and looks == [0, 1]


def test_a_frame_has_the_same_columns_always(tmp_path: Path) -> None:
    empty = diagnostics.read(driver.write(tmp_path / "empty.jsonl", []))
    assert tuple(empty.columns) == COLUMNS and len(empty) == 0
    old = {"stage": "A", "step": 1, "tf": 2, "grad_tf": 1.0}
    frame = diagnostics.read(driver.write(tmp_path / "old.jsonl", [old]))
    assert tuple(frame.columns) == (*COLUMNS, "grad_tf")
    assert list(frame["kind"]) == ["step"]
    full = diagnostics.read(driver.write(tmp_path / "full.jsonl", driver.run_rows()))
    assert tuple(full.columns[: len(COLUMNS)]) == COLUMNS
    for other in (frame, full):
        assert list(other.dtypes[list(COLUMNS)]) == list(empty.dtypes)


def test_a_frame_holds_what_the_rows_hold(tmp_path: Path) -> None:
    import pandas as pd

    bad = driver.step_row("A", 3, 1, "two", tf=None, nonfinite=["tf", "grad_tf"], late=True)
    path = driver.write(tmp_path / "d.jsonl", [ONE, driver.health_row("A", 2, "one"), bad])
    frame = diagnostics.read(path)
    assert list(frame["step"]) == [1, 2, 3]
    assert frame["tf"][0] == ONE["tf"]
    assert pd.isna(frame["tf"][2]) and frame["nonfinite"][2] == ("tf", "grad_tf")
    assert frame["nonfinite"][0] == ()
    assert frame["time"][0] == pd.Timestamp(ONE["time"])
    assert list(frame["health_state"][[1]]) == ["warming"]
    assert str(frame["right_minus_wrong"].dtype) == "float64"
    assert len(diagnostics.read(path, kind="health")) == 1


def test_rows_need_no_pandas() -> None:
    script = "import sys, latentwire.diagnostics.reading; print('pandas' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "False"
