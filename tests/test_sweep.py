"""Sweeps: their points, what is refused before the first starts, and the table they end in."""

import json
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from conftest import small_overrides
from launching import python

from latentwire import points, sweep
from latentwire.config import ConfigError
from latentwire.svg import Line, Mark, plot, ticks
from latentwire.sweep_table import Row, markdown, row_of, write_tables

TRAINER = """
import json, os, signal, sys, time
from pathlib import Path
settings = dict(text.split("=", 1) for text in sys.argv[1:])
tag, folder = settings["run.tag"], Path(settings["run.root"]) / settings["run.tag"]
folder.mkdir(parents=True, exist_ok=True)
with open(folder.parent / "started", "a") as file:
    file.write(tag + "\\n")
signal.signal(signal.SIGTERM, lambda *_: (write("preempted"), sys.exit(0)))
def write(state):
    # At once: the test looks at any moment, and so may a signal come.
    new = folder / f"{state}.new"
    new.write_text(json.dumps({"state": state, "reason": "of the test"}))
    new.replace(folder / "status.json")
if (folder.parent / f"{tag}.wait").exists():
    write("running")
    time.sleep(60)
if (folder.parent / f"{tag}.fail").exists():
    write("failed")
    sys.exit(1)
scores = {"em": int(settings["wire.d_z"]) / 100, "em_ci95": [0.1, 0.9], "f1": 0.5}
scores |= {"first_acc": 0.5, "nll_per_token": None}
decoder = {"compression_tokens": 1.5 * int(settings["wire.ratio"])}
decoder["arms"] = {arm: scores for arm in ("text", "latent", "wrong_wire")}
(folder / "metrics.json").write_text(json.dumps({"decoders": {"a": decoder}}))
write("finished")
"""
"""Stands for the trainer where only the order of the runs is looked at: writes what one leaves."""


@pytest.fixture
def overrides(pair: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "runs").mkdir()
    return ["wire.heads=1", *small_overrides(pair, tmp_path, "decoders.qwen=null", "wire.ratio=5")]


@pytest.fixture
def arguments(overrides: list[str]) -> list[str]:
    return [
        *[text for text in overrides if not text.startswith(("wire.ratio", "wire.d_z"))],
        *("--list", "wire.ratio=5,10", "--list", "wire.d_z=32,64"),
    ]


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the stand-in in the trainer's place; returns the file of the runs it has started."""
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)

    def command(given: sweep.Sweep, point: sweep.Point) -> list[str]:
        return [sys.executable, str(script), *point.overrides]

    monkeypatch.setattr(sweep, "command", command)
    # The stand-in leaves no config.yaml: what it was started with is what is asked for.
    monkeypatch.setattr(
        points, "recorded_config", lambda folder, checkpoints: RECORDED[folder.name]
    )
    return tmp_path / "runs" / "started"


class _Recorded(dict[str, Any]):
    def __missing__(self, tag: str) -> Any:
        return None


RECORDED = _Recorded()


def record(arguments: list[str]) -> list[sweep.Point]:
    given, _ = sweep.parse(arguments)
    _, _, every = sweep.points(given)
    RECORDED.update({point.plan.config.run.tag: point.plan.config for point in every})
    return every


TAGS = ["test-ratio5-d_z32", "test-ratio5-d_z64", "test-ratio10-d_z32", "test-ratio10-d_z64"]


def test_points_are_the_cross_product_in_order(arguments: list[str]) -> None:
    every = record(arguments)
    assert [point.plan.config.run.tag for point in every] == TAGS
    wires = [point.plan.config.wire for point in every]
    assert [(wire.ratio, wire.d_z) for wire in wires] == [(5, 32), (5, 64), (10, 32), (10, 64)]


def test_a_file_means_what_the_options_mean(
    tmp_path: Path, arguments: list[str], overrides: list[str]
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "base: smoke\ntag: named\nnproc: 2\noverrides: {eval.ratios: [6, 7], eval.samples: 24}\n"
        "lists: {wire.ratio: [5, 10], sharding.backend: [fsdp], encoder.lora.rank: [0, 4]}\n"
    )
    own = ("wire.ratio=", "run.tag=", "eval.samples=", "eval.ratios=")
    given, _ = sweep.parse(
        ["--file", str(file), *(text for text in overrides if not text.startswith(own))]
    )
    folder, tag, every = sweep.points(given)
    assert (given.nproc, tag, folder) == (2, "named", tmp_path / "runs" / "named")
    assert [point.name for point in every][:2] == [
        "ratio5-backendfsdp-rank0",
        "ratio5-backendfsdp-rank4",
    ]
    config = every[-1].plan.config
    assert (config.eval.ratios, config.eval.samples) == ((6, 7), 24)
    assert (config.wire.ratio, config.encoder.lora.rank) == (10, 4)


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["wire.num_latents", "wire.d_z"], ["latent_len", "d_z"]),
        (["wire.refiner.layers", "gist.layers"], ["refiner_layers", "gist_layers"]),
        (["optim.encoder_lr"], ["encoder_lr"]),
    ],
)
def test_names_are_short_and_different(keys: list[str], names: list[str]) -> None:
    assert sweep.axis_names(keys) == names


def test_a_name_is_safe_in_a_path() -> None:
    name = sweep.point_name(["data.path", "optim.encoder_lr"], ["/a b/c.json", "1e-4"])
    assert re.fullmatch(r"[A-Za-z0-9._-]+", name)


def refused(*arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        sweep.points(sweep.parse(arguments)[0])
    return caught.value.problems


def test_every_bad_point_is_said_before_the_first_starts(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swept = [text for text in overrides if not text.startswith(("wire.ratio", "train.batch"))]
    arguments = [*swept, "--list", "wire.ratio=5,0,-1", "--list", "train.batch_size=12,x"]
    assert sweep.main(arguments) == 2
    message = capsys.readouterr().err
    assert "ratio0-batch_size12, ratio0-batch_sizex: wire.ratio: 0 must be above 0" in message
    assert "ratio_1" in message and "train.batch_size: 'x' should be a whole number" in message
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "nothing to sweep"),
        (["--list", "wire.d_z="], "no values"),
        (["--list", "wire.d_z=32,32"], "a value twice"),
        (["--list", "wire.d_z=32,64", "wire.d_z=16"], "also swept"),
        (["--list", "run.tag=a,b"], "its own tag"),
        (["--list", "wire.d_z=32", "--list", "wire.d_z=64"], "--list wire.d_z: given twice"),
        (["--list", "wire.d_z=32", "--nproc", "0"], "--nproc"),
        (["--file", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["--fresh"], "--fresh"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(given: list[str], expected: str) -> None:
    assert expected in refused(*given)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bases: smoke", "unknown key 'bases'"),
        ("lists: {wire.d_z: 64}", "should be a list"),
        ("lists: [1]", "should map configuration keys"),
        ("nproc: two", "should be a whole number"),
        ("- a", "must hold a mapping"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(text)
    assert expected in refused("--file", str(file))[0]


def test_dry_run_names_the_points_and_starts_none(
    arguments: list[str], trainer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main(["--dry-run", *arguments]) == 0
    assert capsys.readouterr().out.split() == TAGS
    assert not trainer.exists()


def tables(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "runs" / "test"
    return {name: (folder / f"sweep.{name}").read_text() for name in ("md", "csv", "svg")}


def test_all_points_run_once_and_the_table_compares_them(
    arguments: list[str], trainer: Path, tmp_path: Path
) -> None:
    assert sweep.main(arguments) == 0
    assert trainer.read_text().split() == TAGS
    record(arguments)
    first = tables(tmp_path)
    lines = first["csv"].splitlines()
    assert lines[0].startswith("#,ratio,d_z,state,decoder,compression,em")
    assert lines[1].startswith("1,5,32,finished,a,7.50,0.320,0.100,0.900")
    assert len(lines) == 5
    assert sweep.main(arguments) == 0
    assert trainer.read_text().split() == TAGS, "finished points do not run again"
    assert tables(tmp_path) == first


def test_a_point_whose_metrics_are_torn_runs_again(
    arguments: list[str], trainer: Path, tmp_path: Path
) -> None:
    assert sweep.main(arguments) == 0
    every = record(arguments)
    first = tables(tmp_path)
    torn = every[1].plan.run_folder / "metrics.json"
    whole = torn.read_text()
    torn.write_text(whole[:40])
    # As a table of an array is made, whose other points are not to be lost.
    row = row_of("p", ["5", "64"], torn.parent)
    assert (row.state, row.metrics) == ("finished, no metrics", None)
    assert "| finished, no metrics |" in write_tables(tmp_path / "t", "t", ["a", "b"], [row])
    torn.write_text(whole.replace("0.64", '"x"'))
    assert row_of("p", ["5", "64"], torn.parent).metrics is None
    torn.write_text(whole[:40])
    assert sweep.main(arguments) == 0
    assert trainer.read_text().split() == [*TAGS, TAGS[1]]
    assert tables(tmp_path) == first


def test_a_failed_point_is_named_and_the_others_go_on(
    arguments: list[str], trainer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "runs" / f"{TAGS[1]}.fail"
    mark.touch()
    assert sweep.main(arguments) == 1
    assert trainer.read_text().split() == TAGS
    assert "1 of 4 points failed: ratio5-d_z64" in capsys.readouterr().err
    assert "2,5,64,failed,,,,," in tables(tmp_path)["csv"]
    mark.unlink()
    record(arguments)
    assert sweep.main(arguments) == 0
    assert trainer.read_text().split() == [*TAGS, TAGS[1]], "only what had failed runs again"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_run_and_the_same_command_goes_on(
    arguments: list[str], trainer: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """The signal comes from a child of this test while the sweep waits for its second point."""
    mark = tmp_path / "runs" / f"{TAGS[1]}.wait"
    mark.touch()
    status = tmp_path / "runs" / TAGS[1] / "status.json"
    killer = (
        "import os, pathlib, time\n"
        f"while not pathlib.Path({str(status)!r}).exists(): time.sleep(0.05)\n"
        f"os.kill(os.getppid(), {int(number)})"
    )
    with subprocess.Popen([sys.executable, "-c", killer]):
        start = time.monotonic()
        assert sweep.main(arguments) == 128 + number
        assert time.monotonic() - start < 50
    assert trainer.read_text().split() == TAGS[:2]
    assert json.loads(status.read_text())["state"] == "preempted"
    assert "2,5,64,preempted" in tables(tmp_path)["csv"]
    assert "3,10,32,not started" in tables(tmp_path)["csv"]
    mark.unlink()
    record(arguments)
    assert sweep.main(arguments) == 0
    assert trainer.read_text().split() == [*TAGS[:2], *TAGS[1:]]
    whole = tables(tmp_path)
    assert whole["csv"].count("finished") == 4


def test_more_steps_make_a_finished_point_unfinished(
    arguments: list[str], trainer: Path, tmp_path: Path
) -> None:
    every = record(arguments)
    assert sweep.main(arguments) == 0
    assert all(sweep.is_finished(point.plan) for point in every)
    longer = [text.replace("stage_b.steps=2", "stage_b.steps=3") for text in arguments]
    _, _, every = sweep.points(sweep.parse(longer)[0])
    assert not any(sweep.is_finished(point.plan) for point in every)


@pytest.mark.slow
def test_a_real_sweep_trains_every_point_and_ends_in_the_same_table_again(
    overrides: list[str], tmp_path: Path
) -> None:
    common = [text for text in overrides if not text.startswith(("wire.ratio", "train.stage_"))]
    common += ["train.stage_a.steps=1", "train.stage_b.steps=1", "train.stage_a.encoder_start=0"]
    command = ("-m", "latentwire.cli", "sweep", *common, "--list", "wire.ratio=5,10")
    result = python(*command, timeout=280)
    assert result.returncode == 0, result.stderr
    first = tables(tmp_path)
    rows = [line.split(",") for line in first["csv"].splitlines()[1:]]
    assert [row[1:4] for row in rows] == [["5", "finished", "llama"], ["10", "finished", "llama"]]
    assert float(rows[0][4]) < float(rows[1][4]), "more compression at the higher ratio"
    again = python(*command)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("finished before") == 2
    assert tables(tmp_path) == first
    torn = next((tmp_path / "runs").glob("*-ratio5/metrics.json"))
    torn.write_text(torn.read_text()[:100])
    again = python(*command, timeout=280)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("finished before") == 1
    assert tables(tmp_path) == first, "it was evaluated again"
    other = python(*command, "objectives.tf=2")
    assert other.returncode == 2
    assert "objectives.tf: the run has '1.0', the command '2.0'" in other.stderr


# --- the table and the picture


def row(name: str, compression: float | None = 4.0, em: float = 0.5) -> Row:
    scores: dict[str, Any] = {"em": em, "em_ci95": [em / 2, em], "f1": em, "first_acc": em}
    decoder = {
        "compression_tokens": compression,
        "arms": {arm: scores | {"nll_per_token": 1.0} for arm in ("text", "latent", "wrong_wire")},
    }
    metrics = {"decoders": {"a": decoder, "b & c": decoder}}
    return Row(name=name, values=("8",), state="finished", metrics=metrics)


def test_a_point_has_a_line_for_each_decoder(tmp_path: Path) -> None:
    waiting = Row(name="y", values=("9",), state="not started", metrics=None)
    text = write_tables(tmp_path, "t", ["len"], [row("x"), waiting])
    lines = text.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 1", "| 1", "| 2"]
    assert len({len(line) for line in lines}) == 1, "aligned"
    assert not list(tmp_path.glob("*.tmp"))


def test_markdown_has_a_rule_under_its_header() -> None:
    assert markdown(["a", "bb"], [["ccc", "d"]]).splitlines() == [
        "| a   | bb |",
        "| --- | -- |",
        "| ccc | d  |",
    ]


@pytest.mark.parametrize("xs", [[], [4.0], [4.0, 4.0], [1.5, 40.0, 900.0], [0.001, 0.002]], ids=str)
def test_the_picture_is_whole_and_inside_its_frame(xs: list[float]) -> None:
    marks = [Mark(x=x, y=1.0, low=0.0, high=1.0, label="1", title="a <b> & c") for x in xs]
    text = plot(
        title="t & t",
        x_name="x",
        y_name="y",
        series={"one": marks, "two": marks},
        lines={"one": Line(y=0.9)},
        line_name="text",
    )
    root = ET.fromstring(text)
    circles = [item for item in root.iter() if item.tag.endswith("circle")]
    assert len(circles) == len(xs) + 1, "one a mark, one in the legend"
    for item in root.iter():
        for key, size in (("cx", 720), ("x", 720), ("x1", 720), ("cy", 420), ("y", 420)):
            assert 0 <= float(item.get(key, "0")) <= size
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3.2, 17.9), (0.5, 0.5), (0, 40000), (1e-3, 2)])
def test_ticks_enclose_what_they_mark(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high
    assert 2 <= len(found) <= 9


def test_the_command_is_torchrun_on_this_package(arguments: list[str]) -> None:
    given, _ = sweep.parse([*arguments, "--nproc", "3"])
    _, _, every = sweep.points(given)
    command = sweep.command(given, every[0])
    assert command[0] == sys.executable
    assert "--nproc-per-node=3" in command
    assert command[-1] == f"run.tag={TAGS[0]}"
