"""What ``latentwire watch`` shows of runs that go on, that ended, and that went wrong."""

import io
import json
import math
import os
import pty
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import stream_cases as driver
from rich.console import Console

from latentwire import cli
from latentwire.config import ConfigError
from latentwire.files import publish
from latentwire.watch import lines
from latentwire.watch.folder import RunFolder
from latentwire.watch.model import RunModel
from latentwire.watch.screen import picture
from latentwire.watch.text import duration, number, sparkline


def status(folder: Path, state: str = "running", **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    known = {"state": state, "code": 0, "reason": "", "num_steps": {"A": 100, "B": 200}}
    # At once, as a run's: a watcher beside may read at any moment.
    publish(folder / "status.json", json.dumps(known | more).encode(), durably=False)


def run_at(folder: Path, *, state: str = "running", **options: Any) -> RunFolder:
    driver.write(folder / "diagnostics.jsonl", driver.run_rows(**options))
    status(folder, state)
    run = RunFolder(folder)
    run.look()
    return run


def drawn(run: RunFolder, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    console.print(picture(run, width=80, **options))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_progress_and_what_is_left(tmp_path: Path) -> None:
    first, second = run_at(tmp_path / "r").stages
    assert (first.step, first.is_over, first.share, first.seconds_left) == (100, True, 1.0, 0.0)
    # A row each 5 steps, half a second a step.
    assert (second.step, second.is_over, second.share) == (100, False, 0.5)
    assert second.seconds_per_step == pytest.approx(0.5)
    assert second.seconds_left == pytest.approx(50.0)


def test_a_pause_does_not_count_as_pace() -> None:
    rows = [driver.step_row("A", step, 0, "one") for step in range(1, 11)]
    for row in rows[5:]:
        late = datetime.fromisoformat(row["time"]) + timedelta(hours=8)
        row["time"] = late.isoformat()
    model = RunModel()
    model.add(rows)
    (stage,) = model.stages(num_steps={"A": 20, "B": 0}, state="running")
    assert stage.seconds_left == pytest.approx(5.0)


def test_without_a_known_length_nothing_is_promised() -> None:
    model = RunModel()
    model.add([driver.step_row("A", 1, 0, "one")])
    (stage,) = model.stages(num_steps={}, state="running")
    assert stage.share is None and stage.seconds_left is None
    assert lines.stage_line(stage) == "stage A: step 1, unknown left"


def test_of_a_run_that_was_stopped_nothing_is_left(tmp_path: Path) -> None:
    _, second = run_at(tmp_path / "r", state="stopped").stages
    assert second.left == "not finished" and second.seconds_left is None
    _, second = run_at(tmp_path / "s", state="finished").stages
    assert second.left == "over"


def test_a_stage_that_ended_early_is_over(tmp_path: Path) -> None:
    rows = [driver.step_row("A", 10, 0, "one"), driver.step_row("B", 10, 0, "one")]
    driver.write(tmp_path / "r" / "diagnostics.jsonl", rows)
    status(tmp_path / "r")
    run = RunFolder(tmp_path / "r")
    run.look()
    assert [stage.is_over for stage in run.stages] == [True, False]


def test_lengths_come_from_the_configuration_where_the_status_has_none(tmp_path: Path) -> None:
    config = "train: {stage_a: {steps: 40}, stage_b: {steps: null, epochs: 2.0}}\n"
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "status.json").write_text('{"state": "running"}')
    run = RunFolder(tmp_path)
    run.look()
    assert run.num_steps == {"A": 40}


def test_norms_are_the_median_over_the_ranks_of_a_group(tmp_path: Path) -> None:
    run = run_at(tmp_path / "r", ranks=4)
    # Ranks 0 and 2 have decoder one: the gradient is (1 + rank) times the fall.
    fall = math.exp(-200 / 80)
    assert lines.norms(run, "one")["tf"].last == pytest.approx(2 * fall)
    assert lines.norms(run, "two")["tf"].last == pytest.approx(3 * fall)
    assert lines.unit_norms(run, "one")["encoder"].last == pytest.approx(fall)
    assert run.model.shared["grad_norm"].last == pytest.approx(3 * fall)


def test_what_is_only_measured_is_shown_when_asked_for(tmp_path: Path) -> None:
    run = run_at(tmp_path / "r")
    assert list(lines.losses(run, "one")) == ["tf", "first_acc"]
    assert list(lines.losses(run, "one", every=True)) == ["tf", "first", "kd", "first_acc"]


def test_the_slowest_rank_is_named(tmp_path: Path) -> None:
    run = run_at(tmp_path / "r", ranks=4)
    assert lines.slowest(run, count=2) == "rank 3 0.70 s, rank 2 0.60 s"
    assert "min 0.40, median 0.55, max 0.70" in drawn(run)


def test_ranks_that_are_gone_do_not_count() -> None:
    """A run may go on with fewer."""
    model = RunModel()
    places = [("A", 10, 4), *(("B", step, 2) for step in range(10, 60, 10))]
    for index, (stage, step, ranks) in enumerate(places):
        for rank in range(ranks):
            model.add([driver.step_row(stage, step, rank, "one", sec_per_step=1.0 + rank)])
        # Until a few steps are logged, rows of the others may be late.
        assert model.num_ranks == (2 if index == len(places) - 1 else 4), (stage, step)
    assert model.step_seconds() == {1: 2.0, 0: 1.0}


def test_the_picture_fits_80_columns_and_says_everything(tmp_path: Path) -> None:
    text = drawn(run_at(tmp_path / "r"))
    assert max(map(len, text.splitlines())) <= 80
    for part in ("stage A", "100/200", "0:50 left", "tf", "all units", "encoder", "one", "two"):
        assert part in text, part
    assert "alive" in text and "right minus wrong wire -1.000" in " ".join(text.split())
    assert any(block in text for block in "▂▃▄▅▆▇█")
    assert "\x1b" not in text
    plain = drawn(run_at(tmp_path / "p"), plain=True)
    assert not set(plain) & set("▁▂▃▄▅▆▇█─")


def test_trouble_is_said(tmp_path: Path) -> None:
    rows = [
        driver.step_row("A", 1, 1, "two", tf=None, nonfinite=["tf"], skipped=True, late=True),
        driver.step_row("A", 2, 0, "one", dropped=7),
        driver.health_row("A", 2, "two", state="collapsed", reasons=["the wrong wire is as good"]),
    ]
    driver.write(tmp_path / "diagnostics.jsonl", rows)
    status(tmp_path)
    run = RunFolder(tmp_path)
    run.look()
    for text in (drawn(run), "\n".join(lines.snapshot(run))):
        flat = " ".join(text.split())
        assert "not finite: stage A step 1, rank 1, two: tf" in flat
        assert "skipped steps: 1" in flat and "late rows: 1" in flat and "dropped rows: 7" in flat
        assert "collapsed" in flat and "the wrong wire is as good" in flat


def test_rows_of_other_versions_are_no_error() -> None:
    rows: list[dict[str, Any]] = [
        {},
        {"kind": "weather", "stage": "A", "step": 1},
        {"stage": "A", "step": "two"},
        {"stage": "A", "step": 3},
        {"stage": "Z", "step": 4, "rank": None, "decoder": "one", "tf": "much", "time": "now"},
        {"kind": "health", "stage": "A", "step": 4},
    ]
    model = RunModel()
    model.add(rows)
    assert model.last_place == ("Z", 4)
    model.stages(num_steps={}, state="running")


def test_a_resumed_run_forgets_what_it_trains_anew(tmp_path: Path) -> None:
    run = run_at(tmp_path / "r")
    assert run.model.last_place == ("B", 100)
    kept = [row for row in driver.run_rows() if row["stage"] == "A"]
    driver.write(tmp_path / "fresh", kept).replace(tmp_path / "r" / "diagnostics.jsonl")
    run.look()
    assert run.model.last_place == ("A", 100)
    assert len(run.model.shared["grad_norm"].values) == 20


def test_rows_of_another_run_in_a_shared_file_are_left_out(tmp_path: Path) -> None:
    rows = [driver.step_row("A", step, 0, "one", run=run) for step, run in ((1, "r"), (2, "other"))]
    shared = driver.write(tmp_path / "shared.jsonl", rows)
    status(tmp_path / "r", files={"diagnostics": str(shared)})
    (tmp_path / "r" / "config.yaml").write_text("run: {tag: r}\n")
    run = RunFolder(tmp_path / "r")
    run.look()
    assert run.model.last_place == ("A", 1)


def test_only_what_is_new_is_said_again(tmp_path: Path) -> None:
    run = run_at(tmp_path / "r")
    changes = lines.Changes()
    first = list(changes.of(run))
    assert len(first) == 3 and first[0].startswith("stage B step 100: 0:50 left, tf/one")
    assert list(changes.of(run)) == []
    with (tmp_path / "r" / "diagnostics.jsonl").open("a") as file:
        file.write(json.dumps(driver.step_row("B", 105, 0, "one")) + "\n")
        row = driver.health_row("B", 105, "two", state="exploding", reasons=["norm"])
        file.write(json.dumps(row) + "\n")
    run.look()
    second = list(changes.of(run))
    assert second[0].startswith("stage B step 105") and "exploding (norm)" in second[1]


def test_a_finished_run_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_at(tmp_path / "r", state="finished")
    metrics = {"decoders": {"one": {"arms": {"text": {"em": 0.9}, "latent": {"em": 0.8}}}}}
    (tmp_path / "r" / "metrics.json").write_text(json.dumps(metrics))
    assert cli.main(["watch", str(tmp_path / "r")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("r: finished, 4 ranks\nstage A: step 100 of 100")
    assert "exact match of one: text 0.900, latent 0.800" in out


def test_without_a_terminal_it_ends_with_the_run(tmp_path: Path) -> None:
    """The run ends while it is watched; what it wrote last is still said."""
    run_at(tmp_path / "r")
    command = [sys.executable, "-m", "latentwire.cli", "watch", str(tmp_path / "r")]
    with subprocess.Popen(
        [*command, "--interval", "0.05"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("stage B step 100"):
            pass
        with (tmp_path / "r" / "diagnostics.jsonl").open("a") as file:
            file.write(json.dumps(driver.step_row("B", 200, 0, "one")) + "\n")
        status(tmp_path / "r", "preempted", reason="asked by a signal")
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 0
    assert "stage B step 200" in rest
    assert rest.splitlines()[-1].startswith("r: preempted (asked by a signal)")


def test_it_may_stay_through_a_preemption(tmp_path: Path) -> None:
    run_at(tmp_path / "r")
    command = [sys.executable, "-m", "latentwire.cli", "watch", str(tmp_path / "r"), "--wait"]
    with subprocess.Popen(
        [*command, "--interval", "0.05"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None

        def said(start: str) -> None:
            assert process.stdout is not None
            while not process.stdout.readline().startswith(start):
                assert process.poll() is None

        said("stage B step 100")
        status(tmp_path / "r", "preempted", reason="asked by a signal")
        said("r: preempted (asked by a signal)")
        status(tmp_path / "r", "failed", code=1, reason="node two is gone")
        said("r: failed (node two is gone)")
        status(tmp_path / "r")
        said("r: running")
        with (tmp_path / "r" / "diagnostics.jsonl").open("a") as file:
            file.write(json.dumps(driver.step_row("B", 200, 0, "one")) + "\n")
        said("stage B step 200")
        status(tmp_path / "r", "failed", code=2, reason="data.path is gone")
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("requeued", "when", "is_over"),
    [(False, "12:00:01", True), (True, "12:00:01", False), (False, "11:00:00", False)],
)
def test_it_does_not_wait_for_a_job_that_is_not_queued_again(
    requeued: bool, when: str, is_over: bool, tmp_path: Path
) -> None:
    run_at(tmp_path / "r")
    at = "2026-01-01T{}+00:00"
    status(tmp_path / "r", "preempted", time=at.format("12:00:00"))
    line = {"time": at.format(when), "requeued": requeued}
    (tmp_path / "r" / "attempts.jsonl").write_text(json.dumps(line) + "\n")
    run = RunFolder(tmp_path / "r", waits=True)
    run.look()
    assert run.is_over == is_over
    (tmp_path / "r" / "status.json").write_text("")
    run.look()
    assert run.state == "preempted", "a bad moment of the file server is no news"


def test_in_a_terminal_it_draws(tmp_path: Path) -> None:
    run_at(tmp_path / "r", state="finished")
    near, far = pty.openpty()
    command = [sys.executable, "-m", "latentwire.cli", "watch", str(tmp_path / "r")]
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm-256color", "PYTHONUTF8": "1"}
    with subprocess.Popen(command, stdout=far, env=environment) as process:
        os.close(far)
        found = b""
        while True:
            try:
                found += os.read(near, 4096)
            except OSError:  # how a terminal says that the other side is gone
                break
        assert process.wait(timeout=60) == 0
    os.close(near)
    assert b"\x1b[" in found and "█".encode() in found


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["watch", str(tmp_path)]) == 2
    assert "no such run" in capsys.readouterr().err
    assert cli.main(["watch", str(tmp_path), "--interval", "0"]) == 2
    with pytest.raises(ConfigError):
        RunFolder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([], {}, ""),
        ([1.0, 1.0], {}, "▅▅"),
        ([1.0, 1.0001], {}, "▅▅"),
        ([1.0, 1.0001], {"is_log": True}, "▅▅"),
        ([0.0, 1.0, math.nan, math.inf], {}, "▁█xx"),
        ([0.0, 1.0, 10.0, 100.0], {"is_log": True}, "▁▁▅█"),
        ([0, 5, 1, 1], {"width": 2}, "█▁"),
        ([0, math.nan, 1, 2], {"width": 2}, "x▅"),
    ],
)
def test_sparklines(values: list[float], options: dict[str, Any], expected: str) -> None:
    assert sparkline(values, **({"width": 9} | options)) == expected


def test_no_file_commands_the_terminal(tmp_path: Path) -> None:
    bad = "\x1b]0;taken\x07\x1b[2J\x9b2J\x7f"
    trouble = {"diagnostics": {"trouble": bad}, "reason": f"a{bad}\nb"}
    run = run_at(tmp_path / "r")
    status(tmp_path / "r", "finished", **trouble)
    row = {"stage": f"A{bad}", "step": 99, "rank": 0, "decoder": f"one{bad}", "state": bad}
    rows = [
        row | {"kind": "health", "reasons": [bad], f"update_ratio/{bad}": 1.0},
        row | {"kind": "step", "grad_norm/[/nope]": 2.0, f"grad_{bad}": 1.0, "tf": 1.0},
    ]
    with (tmp_path / "r" / "diagnostics.jsonl").open("a") as file:
        file.write("".join(json.dumps(each) + "\n" for each in rows))
    score = {"arms": {"text": {"em": 1.0}, "latent": {"em": 1.0}}}
    (tmp_path / "r" / "metrics.json").write_text(json.dumps({"decoders": {f"one{bad}": score}}))
    run.look()
    said = (
        "\n".join(lines.snapshot(run)) + "".join(lines.Changes().of(run)) + drawn(run, every=True)
    )
    assert not set(said) & set("\x1b\x07\x9b\x7f")
    assert "taken" in said and "[/nope]" in said and "b)" in said


def test_numbers_and_times() -> None:
    assert [number(value) for value in (None, "x", [1], {})] == ["-"] * 4
    found = [number(v) for v in (None, math.nan, 0.0, 0.5, 123.456, 1e-5, 2e7)]
    assert found == ["-", "not fin", "0.000", "0.500", "123.5", "1.0e-05", "2.0e+07"]
    assert all(len(number(value)) <= 7 for value in (-0.5, -12.3456, 9999.4, 99.9996))
    assert [duration(s) for s in (None, 5, 125.4, 3723)] == ["unknown", "0:05", "2:05", "1:02:03"]
