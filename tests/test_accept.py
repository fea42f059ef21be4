"""Acceptance: what a good run shows, and each thing that alone makes it not accepted."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from latentwire import accept, config_file

NUM_EXAMPLES = 120


def prediction(decoder: str, arm: str, example: int, *, right: bool) -> dict[str, Any]:
    return {
        "example": example,
        "document": example // 2,
        "decoder": decoder,
        "arm": arm,
        "answers": ["yes"],
        "prediction": "yes" if right else "no",
    }


class Run:
    """A run's files, as an honest one leaves them; a test changes what it is about."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = config_file.load("smoke", ["run.tag=r", "objectives.kd=1"])
        self.config: dict[str, Any] = config_file.to_tree(config)
        scores = {"text": 0.96, "latent": 0.95, "wrong_wire": 0.1}
        self.metrics: dict[str, Any] = {
            "num_examples": NUM_EXAMPLES,
            "checkpoint": {"stage": "B", "step": 9},
            "decoders": {
                name: {"arms": {arm: {"em": em, "first_acc": em} for arm, em in scores.items()}}
                for name in ("one", "two")
            },
        }
        self.predictions = [
            prediction(name, arm, example, right=(example % 10 != 0) == (arm == "latent"))
            for name in ("one", "two")
            for arm in ("latent", "wrong_wire")
            for example in range(NUM_EXAMPLES)
        ]
        self.rows = [
            self.row(decoder, stage, step, rank, grad_tf=1.0, grad_kd=0.5, grad_span=0.1)
            for stage in "AB"
            for step in (5, 9)
            for rank, decoder in enumerate(("one", "two", "two"))
        ]
        self.state: dict[str, Any] = {"state": "finished"}

    def row(self, decoder: str, stage: str, step: int, rank: int, **more: Any) -> dict[str, Any]:
        place = {"run": "r", "decoder": decoder, "stage": stage, "step": step, "rank": rank}
        return place | {"grad_norm": 0.0, "skipped": False} | more

    def write(self) -> None:
        self.folder.mkdir(exist_ok=True)
        lines = {"predictions.jsonl": self.predictions, "diagnostics.jsonl": self.rows}
        for name, rows in lines.items():
            (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        (self.folder / "metrics.json").write_text(json.dumps(self.metrics))
        (self.folder / "status.json").write_text(json.dumps(self.state))
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config))

    def failed(self, *arguments: str) -> list[str]:
        """Names of the checks that fail; the exit code and the file agree with them."""
        self.write()
        code = accept.main([str(self.folder), *arguments])
        found = json.loads((self.folder / "accept.json").read_text())
        failed = [check["name"] for check in found["checks"] if not check["passed"]]
        assert found["accepted"] == (code == 0) == (not failed) == accept.was_accepted(self.folder)
        return failed


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "r")


def test_a_good_run_is_accepted_and_every_check_is_shown(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.failed() == []
    printed = capsys.readouterr().out
    assert printed.count("pass") == 2 + 2 * (4 + 3), "of the run, and of each decoder"
    assert "grad_kd" in printed and "grad_first" not in printed, "first is not trained"
    assert printed.rstrip().endswith(": accepted")


def test_a_row_without_decoder_and_a_text_with_odd_line_ends_are_no_matter(run: Run) -> None:
    run.rows.append({"stage": "B", "step": 9, "grad_tf": 0.0})
    run.write()
    path = run.folder / "predictions.jsonl"
    path.write_text(path.read_text().replace('"yes"', '"\u2028yes"'), encoding="utf-8")
    assert accept.read_run(run.folder).gradients["one"]["tf"] == 1.0
    assert run.failed() == []


def test_rows_of_health_and_a_torn_last_line_are_no_matter(run: Run) -> None:
    run.rows.append({"kind": "health", "decoder": "one", "stage": "B", "step": 9, "state": "alive"})
    run.rows[0]["grad_norm_clipped"] = 0.0
    run.write()
    with (run.folder / "diagnostics.jsonl").open("a") as file:
        file.write('{"stage": "B", "st')
    assert accept.main([str(run.folder)]) == 0


@pytest.mark.parametrize(
    ("score", "check"),
    [("first_acc", "first_acc, latent / text"), ("em", "EM, latent / text")],
)
def test_a_wire_below_its_text_fails(run: Run, score: str, check: str) -> None:
    run.metrics["decoders"]["two"]["arms"]["latent"][score] = 0.8
    assert run.failed() == [check]
    assert run.failed("--min-first-ratio", "0.8", "--min-em-ratio", "0.8") == []


def test_a_text_that_is_not_read_gives_no_ratio(run: Run) -> None:
    run.metrics["decoders"]["one"]["arms"]["text"]["em"] = 0.0
    assert run.failed() == ["EM, latent / text"]


def test_a_wrong_wire_as_good_as_the_own_fails(run: Run) -> None:
    for row in run.predictions:
        row["prediction"] = "yes"
    assert run.failed() == ["EM, latent - wrong_wire", "its 95 % interval's low end"] * 2


def test_a_gap_that_few_documents_make_uncertain_fails(run: Run) -> None:
    """Three documents in four are against it: the mean is above 0, its interval is not."""
    wins = {("latent", True), ("wrong_wire", False)}
    run.predictions = [
        prediction(name, arm, example, right=((arm, example < 70) in wins))
        for name in ("one", "two")
        for arm in ("latent", "wrong_wire")
        for example in range(NUM_EXAMPLES)
    ]
    assert run.failed("--min-gap", "0.1") == ["its 95 % interval's low end"] * 2


def test_too_few_examples_fail(run: Run) -> None:
    run.metrics["num_examples"] = 99
    assert run.failed() == ["num_examples"]
    assert run.failed("--min-examples", "99") == []


def test_a_run_that_goes_on_is_not_accepted(run: Run) -> None:
    run.state["state"] = "running"
    assert run.failed() == ["state"]


def test_a_gradient_that_died_in_the_last_row_fails(run: Run) -> None:
    run.rows[-1]["grad_kd"] = 0.0  # one of the two ranks of this decoder
    assert run.failed() == ["grad_kd"]


def test_a_gradient_that_was_dead_earlier_does_not(run: Run) -> None:
    run.rows[0]["grad_kd"] = 0.0
    run.rows.append(run.row("two", "B", 10, 2))  # a later row without norms
    run.rows.append(run.row("two", "B", 11, 2, skipped=True, grad_kd=None))
    run.rows.append(run.row("two", "B", 9, 0, grad_kd=0.0) | {"run": "another"})
    assert run.failed() == []


def test_a_gradient_that_was_never_measured_fails_unless_it_was_filtered_out(run: Run) -> None:
    for row in run.rows:
        del row["grad_span"]
    assert run.failed() == ["grad_span"] * 2
    run.config["diagnostics"]["grad_diag_components"] = ["tf", "kd"]
    assert run.failed() == []


def test_the_stream_is_read_where_the_status_says(run: Run, tmp_path: Path) -> None:
    run.write()
    run.state["files"] = {"diagnostics": str(tmp_path / "elsewhere.jsonl")}
    (run.folder / "diagnostics.jsonl").rename(tmp_path / "elsewhere.jsonl")
    rows, run.rows = run.rows, []
    (tmp_path / "elsewhere.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run.failed() == []


def test_a_run_that_was_moved_is_judged_by_its_own_rows(run: Run, tmp_path: Path) -> None:
    run.write()
    run.state["files"] = {"diagnostics": str(tmp_path / "gone" / "diagnostics.jsonl")}
    assert run.failed() == []


@pytest.mark.parametrize("missing", ["metrics.json", "predictions.jsonl", "config.yaml"])
def test_a_run_without_its_files_is_bad_input(
    run: Run, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run.write()
    (run.folder / missing).unlink()
    assert accept.main([str(run.folder)]) == 2
    assert missing in capsys.readouterr().err
    assert not accept.was_accepted(run.folder)


@pytest.mark.parametrize("content", ["{}", "[]", '{"decoders": 3}', "no json"])
def test_metrics_that_are_none_are_bad_input(run: Run, content: str) -> None:
    run.write()
    (run.folder / "metrics.json").write_text(content)
    assert accept.main([str(run.folder)]) == 2


def test_no_folder_and_wrong_flags_are_bad_input(tmp_path: Path) -> None:
    assert accept.main([str(tmp_path / "none")]) == 2
    assert accept.main([str(tmp_path), "--min-gap", "much"]) == 2
    assert accept.main([]) == 2
