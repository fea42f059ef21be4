"""Runs whose files are torn, edited or another program's: every reader says so, or goes on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import report_cases
import stream_cases

from latentwire import accept, cli
from latentwire.diagnostics import Tail, rows
from latentwire.diagnostics.run_files import read_metrics, read_status
from latentwire.report.charts import ChartMaker
from latentwire.report.run_data import read_run
from latentwire.sweep_table import row_of, write_tables
from latentwire.training.status import diagnostics_path, note_refusal, write_status

STEP = {"kind": "step", "stage": "B", "step": 500, "decoder": "one", "rank": 0}
HEALTH = {"kind": "health", "stage": "B", "step": 500, "decoder": "one", "wire_rank": [1]}
DECODER = {"arms": {"latent": {"em": "x", "compression_tokens": 4.0, "em_ci95": [None, "y"]}}}
ROWS = {
    "a time without zone": {**STEP, "time": "2026-11-27T20:51:58"},
    "a time that is none": {**STEP, "time": 5},
    "what was not finite as a number": {**STEP, "nonfinite": 5},
    "what was not finite as anything": {**STEP, "nonfinite": ["tf", ["a"], {}]},
    "a norm as text": {**STEP, "grad_tf": "x"},
    "a gauge as a list": {**HEALTH, "state": 5, "reasons": {"a": 1}, "update_ratio/x": "x"},
    "no decoder": {"stage": "B", "step": 1},
    "every key of another type": {
        **{"kind": {}, "stage": ["Z"], "step": 1, "decoder": [1], "rank": "0", "late": 1},
        **{"skipped": "x", "dropped": "x"},
    },
}
LINES = {
    "too deep": b"[" * 100_000,
    "deep": b'{"kind": "health", "decoder": "one", "reasons": ' + b"[" * 400 + b"]" * 400 + b"}",
    "too long a number": json.dumps(STEP)[:-1].encode() + b', "tf": ' + b"9" * 400 + b"}",
    "no text": b"\xff\xfe\x00",
} | {name: json.dumps(row).encode() for name, row in ROWS.items()}
STATUS = {"state": 5, "files": 5, "num_steps": {"A": "x"}, "health": [1], "diagnostics": [1]}
FILES = {
    "metrics.json": [
        *(b'{"decoders": {"on', b"", b"[]", b'{"decoders": [1]}', b'{"decoders": {"one": 5}}'),
        *(b'{"decoders": {"one": {"arms": null}}}', b"\xff", b"[" * 100_000),
        json.dumps({"decoders": {"one": DECODER}, "checkpoint": 5}).encode(),
        b'{"decoders": {"one": {"gist": 5, "arms": {"text": {}, "latent": {"em": NaN}}}}}',
        b'{"num_examples": ' + b"9" * 400 + b"}",
    ],
    "config.yaml": [b"\xff\xfe\x00", b"", b"- 1\n", b"run: 5\n", b"foo: 2024-02-31\n", b"\0"],
    "status.json": [
        *(b"\xff", b"[]", json.dumps(STATUS).encode(), b"[" * 100_000),
        b'{"state": "finished", "files": {"diagnostics": "a\\u0000b", "log": 5}}',
    ],
    "diagnostics.jsonl": [b"", b"\xff\n", b"null\n5\n", *(line + b"\n" for line in LINES.values())],
    "predictions.jsonl": [
        *(b"", b"\xff\n", b"[1]\n5\n", b'{"example": 1, "decoder": "one", "arm": "latent"}\n'),
        b'{"example": 1, "decoder": "one", "arm": "latent", "answers": 5, "document": 0}\n',
    ],
    "validation.jsonl": [
        b'{"stage": "B", "step": 4, "score": "x", "decoders": [1]}\n',
        b'{"stage": 5, "step": "x", "score": null, "decoders": {"one": 5}}\n',
        b'{"stage": "B", "step": 4, "score": 1, "decoders": {"one": {"em": "x"}}}\n',
    ],
}
"""Contents of each file; each of the files may be a folder, too."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return report_cases.write_run(tmp_path / "r", stream_cases.run_rows(steps=20))


def read_by_all(folder: Path) -> None:
    out = folder.parent / "out.html"
    assert cli.main(["watch", str(folder), "--once"]) == 0
    assert cli.main(["report", str(folder), "--out", str(out)]) == 0
    assert cli.main(["report", str(folder), str(folder), "--out", str(out)]) == 0
    assert cli.main(["accept", str(folder)]) in (1, 2)
    write_tables(folder.parent / "sweep", "s", ["x"], [row_of("p", ["1"], folder)])
    list(rows(folder)) if diagnostics_path(folder).is_file() else Tail(folder).poll()


@pytest.mark.parametrize("name", FILES)
def test_no_content_of_a_file_ends_a_reader(name: str, run: Path) -> None:
    own = (run / name).read_bytes()
    for content in FILES[name]:
        # Lines are beside those that are as they should be.
        (run / name).write_bytes(own + content if name.endswith(".jsonl") else content)
        read_by_all(run)
    (run / name).unlink()
    (run / name).mkdir()
    read_by_all(run)


@pytest.mark.parametrize("status", [STATUS, [1]])
def test_a_status_of_another_shape_is_written_anew(status: object, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps(status))
    assert read_status(tmp_path).keys() <= {"num_steps"}
    note_refusal(tmp_path, "no")
    write_status(tmp_path, state="failed", code=2, stream={"written": 1})
    found = read_status(tmp_path)
    assert found["state"] == "failed" and found["health"] == {}
    assert found["diagnostics"] == {"written": 1, "trouble": ""}


def test_metrics_keep_what_is_of_their_shape(tmp_path: Path) -> None:
    arms = {"latent": {"em": float("nan")}, "text": 5}
    tree = {"decoders": {"one": {"arms": arms, "gist": 5}, "two": 5}, "checkpoint": [], "split": 1}
    (tmp_path / "metrics.json").write_text(json.dumps(tree))
    decoders = {"one": {"arms": {"latent": {"em": None}}}}
    assert read_metrics(tmp_path) == {"decoders": decoders, "split": 1}


def test_a_score_that_is_no_number_is_in_no_chart(run: Path) -> None:
    (run / "metrics.json").write_text(json.dumps({"decoders": {"one": DECODER}}))
    assert ChartMaker([read_run(run)]).compression() == []
    latent = {"em": 0.5, "compression_tokens": 4.0, "em_ci95": [0.4]}
    arms = {"latent": latent, "text": {"em": "x"}, "latent@9": {**latent, "em": None}}
    (run / "metrics.json").write_text(json.dumps({"decoders": {"one": {"arms": arms}}}))
    (chart,) = ChartMaker([read_run(run)]).compression()
    (point,) = chart.points
    assert (point["x"], point["low"], point["high"]) == ([4.0], [0.5], [0.5])
    assert point["reference"] is None


def test_rows_that_are_none_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["too deep", "too long a number", "no text", "what was not finite as a number"]
    content = b"".join(LINES[name] + b"\n" for name in names)
    (tmp_path / "a.jsonl").write_bytes(content)
    assert list(rows(tmp_path / "a.jsonl")) == [STEP] == Tail(tmp_path / "a.jsonl").poll()
    assert "3 lines are no rows, the first is line 1" in caplog.text


@pytest.mark.parametrize("interval", ["inf", "nan", "0", "-1", "1e300"])
def test_an_interval_that_is_none_is_refused(
    interval: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["watch", str(run), f"--interval={interval}"]) == 2
    assert "must be above 0, and at most 86400 (a day)" in capsys.readouterr().err


def _without_examples(run: Path) -> None:
    tree = json.loads((run / "metrics.json").read_text())
    del tree["num_examples"]
    (run / "metrics.json").write_text(json.dumps(tree))


def _norm_as_text(run: Path) -> None:
    for decoder in stream_cases.DECODERS:
        with (run / "diagnostics.jsonl").open("a") as file:
            row = {**STEP, "decoder": decoder, "run": "r"}
            file.writelines(json.dumps({**row, "grad_tf": norm}) + "\n" for norm in (1.0, "x"))


@pytest.mark.parametrize("change", [_without_examples, _norm_as_text])
def test_accept_says_what_is_no_whole_run(
    change: Callable[[Path], None], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(run)
    assert accept.main([str(run)]) == 2
    assert "its files are not those of a whole run" in capsys.readouterr().err
