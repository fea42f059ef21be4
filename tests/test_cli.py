"""The commands as a user gives them: what is refused, what is printed, and with which code."""

import errno
import importlib.util
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY, small_overrides
from launching import command, python, status

from latentwire import cli, train
from latentwire.train import main
from latentwire.training.status import read_status, write_status


def test_every_problem_is_reported_at_once(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"context": "a", "question": "b", "answers": ["c"]}\nnot json\n')
    overrides = small_overrides(
        pair,
        tmp_path,
        "decoders.qwen.model=./nowhere",
        "decoders.llama.ranks=3",
        "data.source=jsonl",
        f"data.path={bad}",
        "sharding.ds_config=nowhere.json",
    )
    assert main(overrides) == 2
    message = capsys.readouterr().err
    for part in (
        "decoders.qwen.model: './nowhere' is no folder",
        "decoders.llama.ranks: 3, but placement=colocated",
        "bad.jsonl:2",
        "sharding.ds_config: nowhere.json cannot be read",
    ):
        assert part in message, message
    assert "Traceback" not in message
    assert status(tmp_path)["state"] == "failed"
    assert status(tmp_path)["code"] == 2
    assert "nowhere" in str(status(tmp_path)["reason"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.batchsize=3", "did you mean 'train.batch_size'"),
        ("train.batch_size=many", "should be a whole number"),
        ("encoder.model=checkpoints/tiny/none", "is no folder"),
        ("data.source=csv", "data.source"),
        ("run.tag=../up", "run.tag"),
        ("decoders.llama.chat=true", "no chat template"),
        ("objectives.span_layer=9", "use at most"),
        ("decoders.llama", "written key=value"),
    ],
)
def test_a_wrong_override_names_the_key(
    override: str, expected: str, pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small_overrides(pair, tmp_path, override)) == 2
    assert expected in capsys.readouterr().err


def test_a_root_that_cannot_be_a_folder_is_said(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    overrides = [f"run.root={tmp_path / 'file'}", f"checkpoint.root={tmp_path / 'file' / 'below'}"]
    assert main(small_overrides(pair, tmp_path, *overrides)) == 2
    message = capsys.readouterr().err
    for key in ("run.root", "checkpoint.root"):
        assert f"{key}: '{tmp_path / 'file'}" in message
    assert message.count("is a file") == 2


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs Linux's /proc")
def test_a_run_folder_that_cannot_be_made_is_said(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small_overrides(pair, tmp_path, "run.root=/proc/latentwire")) == 2
    message = capsys.readouterr().err
    assert "run.root: '/proc/latentwire' cannot be written" in message
    assert "Traceback" not in message


LONG = "x" * 300


@pytest.mark.parametrize(
    "given",
    [
        ["--recipe", LONG],
        [f"run.root={LONG}"],
        [f"checkpoint.root={LONG}"],
        [f"decoders.llama.model={LONG}"],
        [f"diagnostics.diagnostic_log={LONG}"],
        ["teacher.cache=true", "objectives.kd=1", f"teacher.folder={LONG}"],
    ],
    ids=lambda given: given[-1][:24],
)
def test_a_name_that_no_file_can_have_is_said(
    given: list[str], pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small_overrides(pair, tmp_path, *given)) == 2
    message = capsys.readouterr().err
    assert "File name too long; give another name" in message
    assert LONG not in message, "it is not quoted whole"
    assert main(["--dry-run", *small_overrides(pair, tmp_path, *given)]) == 2


@pytest.mark.parametrize("command_name", ["report", "watch", "accept", "plan", "from-env"])
def test_every_command_says_so(
    command_name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATASET", f"{LONG}.jsonl")
    given = {"plan": [f"decoders.llama.model={LONG}"], "from-env": ["--recipe", "smoke"]}
    assert cli.main([command_name, *given.get(command_name, [str(tmp_path / LONG)])]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"latentwire {command_name}: ") and "too long" in message


def test_an_error_of_a_disk_is_no_wrong_command(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may pass, so a scheduler's job goes on after it: code 2 would end that."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(tmp_path / "file"))

    monkeypatch.setattr(train, "preflight", fail)
    with pytest.raises(OSError, match="Input/output error"):
        main(small_overrides(pair, tmp_path))


@pytest.mark.parametrize("flag", ["--no-such-flag", "--recipe"])
def test_a_wrong_flag_ends_with_code_two(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 2
    assert "--" in capsys.readouterr().err


def test_a_missing_extra_is_named(
    pair: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    overrides = ("sharding.backend=deepspeed", "decoders.qwen.quantization=nf4")
    assert main(small_overrides(pair, tmp_path, *overrides)) == 2
    message = capsys.readouterr().err
    assert ".[deepspeed]" in message
    assert ".[quant]" in message


@pytest.mark.parametrize("state", ["finished", "running", "preempted"])
def test_a_refused_command_takes_back_no_word_of_a_run_that_stands(
    state: str, pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run stays so, and so does one that another job is at; else the refusal is told."""
    run = tmp_path / "runs" / "test"
    write_status(run, state=state)
    monkeypatch.setattr(train, "is_held", lambda folder: folder == run and state == "running")
    assert main(small_overrides(pair, tmp_path, "wire.poolin=mean")) == 2
    assert read_status(run)["state"] == ("failed" if state == "preempted" else state)


def test_what_evaluates_a_run_that_is_not_there_makes_none(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main_eval([*small_overrides(pair, tmp_path), "run.tag=typo"]) == 2
    assert "run.tag: 'typo' has no checkpoint in" in capsys.readouterr().err
    assert train.main_eval([f"--wire={tmp_path / 'typo'}"]) == 2
    assert "is no exported wire" in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.name in ("status.json", "run.lock")]


def test_an_unreachable_hub_ends_within_ten_seconds(
    pair: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    assert main(small_overrides(pair, tmp_path, "decoders.qwen.model=some/model")) == 2
    assert time.monotonic() - start < 10
    assert "cannot reach the Hugging Face hub" in capsys.readouterr().err


def test_dry_run_prints_the_job_and_leaves_nothing(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--dry-run", *small_overrides(pair, tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "batch_size: 12" in printed
    assert "1 ranks, colocated" in printed
    assert "parameters (frozen)" in printed
    assert not (tmp_path / "runs").exists()


def test_the_batch_must_divide_and_rank_0_alone_says_so(pair: Path, tmp_path: Path) -> None:
    """Under torchrun: one message for two ranks, code 2 in the status, no traceback of ours."""
    result = python(
        *("-m", "latentwire.train", "--recipe", "smoke"),
        *small_overrides(pair, tmp_path, "train.batch_size=13"),
        nproc=2,
    )
    assert result.returncode == 1  # torchrun turns any worker's code into 1
    assert result.stderr.count("latentwire cannot start") == 1
    assert "the nearest valid sizes are 12 or 14" in result.stderr
    assert "latentwire/train.py" not in result.stderr.split("ChildFailedError")[0]
    assert status(tmp_path)["code"] == 2


def test_a_run_of_two_ranks_leaves_its_files_and_can_be_asked_again(
    pair: Path, tmp_path: Path
) -> None:
    """train, train again (finished), eval, a changed key, --fresh."""
    overrides = small_overrides(pair, tmp_path, "diagnostics.sinks=tensorboard")
    train = ("-m", "latentwire.train", "--recipe", "smoke")
    first = python(*train, *overrides, nproc=2)
    assert first.returncode == 0, first.stderr
    assert "wrong_wire" in first.stderr
    assert "\r" not in first.stderr.replace("Loading weights", ""), "no bar without a terminal"
    folder = tmp_path / "runs" / "test"
    metrics = json.loads((folder / "metrics.json").read_text())
    for decoder in ("llama", "qwen"):
        arms = metrics["decoders"][decoder]["arms"]
        assert list(arms) == [
            *("text", "latent", "no_context", "truncated_text", "wrong_wire", "zero_wire")
        ]
        for scores in arms.values():
            assert {"em", "em_ci95", "f1", "nll_per_token", "first_acc"} <= scores.keys()
            assert scores["num_examples"] == 12
        assert metrics["decoders"][decoder]["compression_tokens"] > 3
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").open()]
    assert len(predictions) == 12 * 2 * 6
    rows = [json.loads(line) for line in (folder / "diagnostics.jsonl").open()]
    assert [(r["stage"], r["step"], r["rank"]) for r in rows] == [
        (stage, step, rank) for stage in "AB" for step in (1, 2) for rank in (0, 1)
    ]
    wanted = "schema run stage step rank decoder mode tf first kce kd first_acc tf_local "
    wanted += (
        "num_tokens_local keep_prob K grad_tf grad_first grad_kce grad_kd grad_norm sec_per_step"
    )
    assert all(set(wanted.split()) <= row.keys() for row in rows)
    assert "stage C" in (folder / "pipeline.log").read_text()
    assert status(tmp_path)["state"] == "finished"
    examples = [json.loads(line) for line in (folder / "examples.jsonl").open()]
    assert [row["example"] for row in examples] == list(range(12))
    assert all(row["context"] and row["answers"] for row in examples)
    files = status(tmp_path)["files"]
    assert isinstance(files, dict) and files["report"] == str(folder / "report.html")
    assert "data-chart" in (folder / "report.html").read_text()
    assert {path.name for path in (folder / "tensorboard").iterdir()} == {"A", "B"}
    assert status(tmp_path)["num_steps"] == {"A": 2, "B": 2}

    assert main(overrides) == 0  # finished: prints the table, trains nothing
    assert len((folder / "diagnostics.jsonl").read_text().splitlines()) == len(rows)
    assert main([*overrides, "wire.ratio=6"]) == 2
    assert status(tmp_path)["state"] == "finished", "a refusal undoes nothing"
    assert main(["--fresh", *overrides]) == 2
    (folder / "metrics.json").unlink()
    again = python("-m", "latentwire.cli", "eval", *overrides, "eval.samples=9")
    assert again.returncode == 0, again.stderr
    differs = "the evaluation differs from the run in eval.samples: the run has '12'"
    assert f"{differs}, the command '9'" in again.stderr
    assert json.loads((folder / "metrics.json").read_text())["num_examples"] == 9


def signal_when(
    ready: Callable[[], bool], *arguments: str, number: signal.Signals = signal.SIGTERM
) -> None:
    """Runs the trainer, sends it ``number`` once ``ready``, and waits for its orderly end."""
    process = subprocess.Popen(
        command("-m", "latentwire.train", *arguments, nproc=0),
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and not ready():
        time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def test_a_signal_saves_and_the_same_command_goes_on(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(pair, tmp_path, "train.stage_a.steps=2000", "train.stage_b.steps=0")
    diagnostics = tmp_path / "runs" / "test" / "diagnostics.jsonl"
    signal_when(diagnostics.exists, *overrides)
    assert status(tmp_path)["state"] == "preempted"
    saved = list((tmp_path / "checkpoints" / "test" / "stageA").glob("step-*"))
    assert len(saved) == 1
    done = int(saved[0].name[5:])
    assert status(tmp_path)["step"] == done


def test_a_signal_in_stage_c_is_heard_between_two_batches(pair: Path, tmp_path: Path) -> None:
    """The whole test split would take many minutes; the trained steps are not lost."""
    overrides = small_overrides(pair, tmp_path, "train.stage_b.steps=0")
    folder = tmp_path / "runs" / "test"
    log = folder / "pipeline.log"
    signal_when(lambda: log.exists() and "stage C" in log.read_text(), *overrides, "eval.samples=0")
    assert status(tmp_path)["state"] == "preempted"
    assert not (folder / "metrics.json").exists()
    again = python("-m", "latentwire.cli", "eval", *overrides)
    assert again.returncode == 0, again.stderr
    assert json.loads((folder / "metrics.json").read_text())["num_examples"] == 12


def test_the_command_names_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "tiny build" in capsys.readouterr().out
    assert cli.main(["slurm", "--help"]) == 0
    assert "usage: latentwire slurm {requeue,point,table}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main(["env-table", "--help"])
    assert ended.value.code == 0
    assert "usage: latentwire env-table" in capsys.readouterr().out
    assert cli.main(["env-table", "x"]) == 2
    assert cli.main(["fly"]) == 2
    assert "unknown command 'fly'" in capsys.readouterr().err
