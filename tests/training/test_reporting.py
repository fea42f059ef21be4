"""What a run tells while it trains: health among its rows, a status that never holds it up."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from conftest import small_overrides
from jsonschema import Draft202012Validator

from latentwire import config_file
from latentwire.diagnostics.rank_stream import RankStream
from latentwire.diagnostics.schema import load_schema
from latentwire.testing import run_distributed
from latentwire.training import reporting, run
from latentwire.training.preflight import preflight
from latentwire.training.status import read_status


def train_on_rank(rank: int, world_size: int, overrides: list[str]) -> list[Any]:
    config = config_file.load("smoke", overrides)
    with mock.patch.object(RankStream, "pace", pace_of_a_row(RankStream.pace)):
        outcome = run.train(preflight(config, world_size=world_size))
    return [outcome.state, outcome.code]


def pace_of_a_row(pace: Callable[[RankStream], dict[str, Any]]) -> Any:
    """A run asks only for the pace of rows that have come, which two steps on a busy machine need
    not have; here the first of rank 0's is waited for."""

    def wait(stream: RankStream) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while not (found := pace(stream)):
            assert time.monotonic() < deadline, "no row came"
            time.sleep(0.01)
        return found

    return wait


def test_a_collapsed_wire_can_end_the_run(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(
        pair,
        tmp_path,
        "placement=separate",
        "train.stage_a.steps=6",
        "diagnostics.health_interval=2",
        "diagnostics.health_samples=7",
        # Random decoders read nothing at all.
        "diagnostics.health_warmup=0",
        "diagnostics.stop_on_collapse=true",
        "optim.max_grad_norm=1.0e-30",
    )
    assert run_distributed(train_on_rank, 2, overrides) == [["stopped", 1]] * 2
    folder = tmp_path / "runs" / "test"
    rows = [json.loads(line) for line in (folder / "diagnostics.jsonl").read_text().splitlines()]
    schema = Draft202012Validator(load_schema())
    for row in rows:
        schema.validate(row)
    places = [(row["step"], row["kind"], row["rank"], row["decoder"]) for row in rows]
    steps = [(step, "step", *pair) for step in (1, 2) for pair in ((0, "llama"), (1, "qwen"))]
    assert places == [*steps, (2, "health", 0, "llama"), (2, "health", 0, "qwen")]
    health = rows[-2:]
    assert {row["num_examples"] for row in health} == {7}
    assert "collapsed" in {row["state"] for row in health}
    assert health[0]["wire_rank"] == health[1]["wire_rank"] > 1
    reasons = "; ".join(reason for row in health for reason in row["reasons"])
    assert "no gradient reaches it" not in reasons
    assert {"update_ratio/encoder", "update_ratio/adapter"} <= set(health[0])
    assert [one["rank"] for one in health[0]["slowest_ranks"]] in ([0, 1], [1, 0], [0], [1])
    status = read_status(folder)
    assert status["state"] == "stopped"
    assert status["reason"].startswith("diagnostics.stop_on_collapse: the wire of '")
    assert status["health"] == {row["decoder"]: row["state"] for row in health}
    assert status["diagnostics"] | {"trouble": ""} == {
        "written": 6,
        "dropped": 0,
        "late": 0,
        "is_complete": True,
        "trouble": "",
    }
    assert "is collapsed; " in (folder / "pipeline.log").read_text()


def test_a_status_that_cannot_be_written_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: Any, **fields: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reporting.log, "propagate", True)
    monkeypatch.setattr(reporting, "write_status", full)
    with caplog.at_level("WARNING"):
        live = reporting.LiveStatus(tmp_path)
        for step in range(3):
            live.set(stage="A", step=step)
        live.close(stream={"written": 1})
    assert sum("No space left" in message for message in caplog.messages) == 1


def test_an_abandoned_status_says_nothing_more(tmp_path: Path) -> None:
    live = reporting.LiveStatus(tmp_path)
    live.abandon()
    live.set(stage="A", step=1)
    assert read_status(tmp_path) == {}


def test_the_last_status_is_the_one_that_stays(tmp_path: Path) -> None:
    live = reporting.LiveStatus(tmp_path)
    for step in range(1, 50):
        live.set(stage="A", step=step)
    live.close(stream={"written": 49, "dropped": 0})
    found = read_status(tmp_path)
    assert (found["state"], found["stage"], found["step"]) == ("running", "A", 49)
    assert found["diagnostics"]["written"] == 49
