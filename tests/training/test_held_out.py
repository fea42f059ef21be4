"""What is evaluated was not trained on, whatever an evaluation says of its data."""

import json
import logging
from pathlib import Path

import pytest
from conftest import small_overrides

from latentwire import config_file, train
from latentwire.config import Config
from latentwire.training.held_out import held_out_problems, leak_problems, open_split


def texts(path: Path, numbers: range) -> str:
    rows = [
        {"context": f"Context {number}.", "question": "Which?", "answers": [str(number)]}
        for number in numbers
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(pair: Path, folder: Path, *more: str) -> Config:
    path = texts(folder / "rows.jsonl", range(60))
    overrides = ["data.source=jsonl", f"data.path={path}", *more]
    return config_file.load("smoke", small_overrides(pair, folder, *overrides))


def contexts(config: Config, split: str) -> set[str]:
    source = open_split(config, split)  # type: ignore[arg-type]
    return {source.examples(number)[0].context for number in range(source.num_documents)}


def test_a_file_that_is_trained_on_is_no_test(pair: Path, tmp_path: Path) -> None:
    own = texts(tmp_path / "own.jsonl", range(100, 110))
    fine = config(pair, tmp_path, f"data.test_path={own}")
    assert leak_problems(fine, fine, evaluation=False) == []
    trained = contexts(fine, "train")
    some = texts(tmp_path / "some.jsonl", range(60))
    bad = config(pair, tmp_path, f"data.test_path={some}")
    (problem,) = held_out_problems(bad, trained=bad, evaluation=False)
    assert problem.startswith(f"data.test_path: {some}: {len(contexts(bad, 'train'))} of its 60")
    assert len(trained) == 54, "what would be the test is trained on where a file is"


@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_evaluation_is_of_texts_that_the_run_was_not_trained_on(
    split: str, pair: Path, tmp_path: Path
) -> None:
    own = texts(tmp_path / "own.jsonl", range(100, 110))
    run = config(pair, tmp_path, f"data.{split}_path={own}")
    same = config(pair, tmp_path, f"data.{split}_path={own}", f"eval.split={split}")
    assert leak_problems(same, run, evaluation=True) == []
    # Without the file the split is a part of what the run was trained on.
    without = config(pair, tmp_path, f"eval.split={split}")
    (problem,) = leak_problems(without, run, evaluation=True)
    assert problem.startswith(f"eval.split: {split}: ") and "the run's own data keys" in problem
    # A file of texts that it was not trained on is fine, also of the parted file's.
    parted = config(pair, tmp_path)
    number = [int(text.split()[1][:-1]) for text in contexts(parted, "test")]
    rest = texts(tmp_path / "rest.jsonl", range(min(number), min(number) + 1))
    assert (
        leak_problems(config(pair, tmp_path, f"data.test_path={rest}"), parted, evaluation=True)
        == []
    )


def test_where_the_runs_texts_are_gone_that_is_said(
    pair: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("latentwire"), "propagate", True)
    run = config(pair, tmp_path, "data.path=gone.jsonl")
    assert leak_problems(config(pair, tmp_path), run, evaluation=True) == []
    assert "is not known" in caplog.text


def test_a_data_file_that_has_changed_is_refused(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is held out is drawn from what is in it."""
    path = texts(tmp_path / "rows.jsonl", range(60))
    more = ["train.stage_a.steps=2", "train.stage_b.steps=0", "data.questions_per_context=1"]
    own = ["data.source=jsonl", f"data.path={path}", *more]
    command = ["--recipe", "smoke", *small_overrides(pair, tmp_path, *own)]
    assert train.main(command) == 0
    texts(tmp_path / "rows.jsonl", range(90))
    refused = f"data.path: {path} has changed since the run began"
    for longer in (command, [*command, "train.stage_a.steps=3"]):
        assert train.main(longer) == 2
        assert refused in capsys.readouterr().err
    assert train.main_eval(command) == 2
    assert refused in capsys.readouterr().err
    # Of texts of another file it cannot be told whether they were trained on.
    other = texts(tmp_path / "other.jsonl", range(200, 220))
    assert train.main_eval([*command, f"data.test_path={other}"]) == 0
    said = (tmp_path / "runs" / "test" / "pipeline.log").read_text()
    assert f"not known: {refused}" in said
    texts(tmp_path / "rows.jsonl", range(60))
    assert train.main(command) == 0
    assert train.main_eval(command) == 0
