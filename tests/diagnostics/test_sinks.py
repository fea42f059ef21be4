"""Sinks get the rows, each value under one name; what fails in one stays in it."""

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import stream_cases as driver
from conftest import small_overrides

from latentwire.config import ConfigError
from latentwire.config_file import load
from latentwire.diagnostics import sinks
from latentwire.diagnostics.sinks import Feed, Sinks, named, open_sinks
from latentwire.train import main


class Notes:
    """A sink that keeps what it gets, and can be told to fail."""

    def __init__(self, *, fails: str = "") -> None:
        self.fails = fails
        self.rows: list[Any] = []
        self.closed = 0

    def write(self, rows: Sequence[Any]) -> None:
        if self.fails == "write":
            raise OSError("no space left")
        self.rows += rows

    def close(self) -> None:
        self.closed += 1
        if self.fails == "close":
            raise RuntimeError("gone")


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("latentwire"), "propagate", True)


ROWS = [row for row in driver.run_rows(steps=20, ranks=4) if row["step"] == 20]


def test_a_sink_that_fails_is_off_after_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = Notes(), Notes(fails="write")
    with Sinks({"bad": lambda: bad, "good": lambda: good}) as both:
        for _ in range(3):
            both.write(ROWS)
        assert both.names == ["good"]
    assert good.rows == ROWS * 3 and good.closed == 1 and bad.closed == 1
    assert [r.message for r in caplog.records] == [
        "diagnostics.sinks: bad is off: OSError: no space left"
    ]


def test_a_sink_that_cannot_be_opened_or_closed_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> Notes:
        raise ValueError("no login")

    with Sinks({"one": broken, "two": lambda: Notes(fails="close")}) as both:
        both.write(ROWS)
    assert [r.message.split(": ", 1)[1] for r in caplog.records] == [
        "one is off: ValueError: no login",
        "two is off: RuntimeError: gone",
    ]


def test_a_feed_hands_on_what_comes_after_it_began(tmp_path: Path) -> None:
    path = driver.write(tmp_path / "d.jsonl", ROWS[:3])
    notes = Notes()
    more = driver.write(tmp_path / "more.jsonl", ROWS[3:]).read_text()
    with Feed(path, lambda: Sinks({"notes": lambda: notes}), interval=0.01), path.open("a") as file:
        file.write(more)
    assert notes.rows == ROWS[3:] and notes.closed == 1


def test_a_sink_that_hangs_holds_nobody_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = driver.write(tmp_path / "d.jsonl", [])
    free = threading.Event()

    class Hanging(Notes):
        def write(self, rows: Sequence[Any]) -> None:
            free.wait(60)

    with Feed(path, lambda: Sinks({"slow": Hanging}), interval=0.01, patience=0.1):
        driver.write(path, ROWS)
    assert "did not take the last rows within 0 s" in caplog.text
    free.set()


def test_a_feed_whose_sinks_are_all_off_ends(tmp_path: Path) -> None:
    def broken() -> Notes:
        raise ValueError("no login")

    path = driver.write(tmp_path / "d.jsonl", ROWS)
    with Feed(path, lambda: Sinks({"one": broken}), interval=600) as feed:
        feed._thread.join(60)
        assert not feed._thread.is_alive()


def test_each_value_has_one_name() -> None:
    found: dict[str, Any] = {}
    for row, values in named([row for row in ROWS if row["stage"] == "A"]):
        assert not set(values) & set(found), row
        found |= values
    assert {"tf/one", "tf/two", "grad_norm/encoder/one", "lr_encoder/two"} <= set(found)
    assert {"grad_tf/one/rank2", "tf_local/two/rank3", "sec_per_step/one/rank0"} <= set(found)
    assert "tf/one/rank0" not in found and "kce/one" not in found
    assert found["health/state/one"] == "warming" and "health/reason/one" not in found
    assert found["health/right_minus_wrong/one"] == -0.1


def test_rows_without_a_place_are_left_out() -> None:
    assert list(named([{}, {"stage": "A", "tf": 1.0}, {"stage": 3, "step": 1}])) == []


def test_tensorboard_has_every_value(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_sinks(["tensorboard"], tmp_path, run="r", config={}) as opened:
        for step in (5, 10, 15, 20):
            opened.write([row for row in driver.run_rows(steps=20) if row["step"] == step])
        assert opened.names == ["tensorboard"]
    for stage in "AB":
        events = EventAccumulator(str(tmp_path / "tensorboard" / stage))
        events.Reload()
        scalars = events.Scalars("tf/one")
        rows = [
            row
            for row in driver.run_rows(steps=20)
            if (row["kind"], row["stage"], row["rank"]) == ("step", stage, 0)
        ]
        assert [s.step for s in scalars] == [5, 10, 15, 20]
        assert [s.value for s in scalars] == pytest.approx([r["tf"] for r in rows])
        assert [s.step for s in events.Scalars("grad_tf/two/rank3")] == [10, 20]
        assert [s.step for s in events.Scalars("health/prediction_diversity/two")] == [20]


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two attempts of one run: written on the disk under one id, nothing sent."""
    pytest.importorskip("wandb")
    script = (
        "import sys; from pathlib import Path\n"
        "from latentwire.diagnostics.sinks import Feed, open_sinks\n"
        "folder = Path(sys.argv[1]); path = folder / 'diagnostics.jsonl'\n"
        "path.write_text('')\n"
        "def opened(): return open_sinks(['wandb'], folder, run='r', config={'a': 1})\n"
        "with Feed(path, opened, patience=150): path.write_text(sys.stdin.read())\n"
    )
    monkeypatch.setenv("WANDB_MODE", "offline")
    for _ in range(2):
        result = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            input="".join(json.dumps(row) + "\n" for row in ROWS),
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert result.returncode == 0, result.stderr
        assert "diagnostics.sinks" not in result.stderr
    identity = (tmp_path / "wandb_id").read_text().strip()
    files = list((tmp_path / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert files
    content = b"".join(file.read_bytes() for file in files)
    assert b"A/tf/one" in content and b"B/grad_tf/two/rank3" in content


def test_an_unknown_sink_is_refused(recipe: str) -> None:
    with pytest.raises(ConfigError, match="diagnostics.sinks: csv is no sink; there are tensorb"):
        load(recipe, ["diagnostics.sinks=[csv, wandb]"])
    with pytest.raises(ConfigError, match="must hold each sink once"):
        load(recipe, ["diagnostics.sinks=[wandb, wandb]"])


def test_a_missing_package_is_said_at_the_start(
    pair: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = sinks.importlib.util.find_spec
    monkeypatch.setattr(
        sinks.importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name)
    )
    overrides = small_overrides(pair, tmp_path, "diagnostics.sinks=[wandb, tensorboard]")
    assert main(overrides) == 2
    message = capsys.readouterr().err
    assert "diagnostics.sinks: 'wandb' needs wandb; pip install -e '.[wandb]'" in message
    assert "'tensorboard'" not in message
