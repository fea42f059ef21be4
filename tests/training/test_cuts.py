"""What does not fit is said before training, and again of what a stage has read."""

import json
import re
from pathlib import Path

import torch
from conftest import small_overrides

from latentwire import config_file
from latentwire.data.example import Example
from latentwire.data.prompts import prompts_for
from latentwire.data.tokenizers import load_tokenizer
from latentwire.distributed.assembly import assemble
from latentwire.distributed.groups import ProcessGroups
from latentwire.testing import run_distributed
from latentwire.training import run
from latentwire.training.cuts import warn_of_long
from latentwire.training.preflight import preflight
from latentwire.training.prompt_checks import sample_documents
from latentwire.training.run_folder import log_to


def train_on_rank(rank: int, world_size: int, overrides: list[str]) -> str:
    return run.train(preflight(config_file.load("smoke", overrides), world_size=world_size)).state


def test_long_texts_are_counted_before_and_after(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(pair, tmp_path, "encoder.max_tokens=24", "train.stage_b.steps=0")
    assert run_distributed(train_on_rank, 1, overrides) == ["finished"]
    log = (tmp_path / "runs" / "test" / "pipeline.log").read_text()
    before, after = log.split("stage A: steps 1 to 2")
    first = re.search(r"(\d+) training texts looked at first: cut (\d+) texts longer", before)
    assert first is not None and int(first[2]) == int(first[1]) > 64
    assert "stage A: cut " in after and "longer than the encoder's 23 tokens" in after
    # Each is counted anew: two steps of a dozen examples.
    assert 0 < int(re.search(r"stage A: cut (\d+) texts", after)[1]) < 24  # type: ignore[index]


def test_a_question_that_no_window_holds_is_named_as_that(pair: Path, tmp_path: Path) -> None:
    rows = [
        {
            "context": f"Text {i}.",
            "question": "why " * (2000 if i % 2 else 1),
            "answers": [f"so {i}"],
        }
        for i in range(60)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ["data.source=jsonl", f"data.path={path}", "data.questions_per_context=1"]
    overrides = small_overrides(pair, tmp_path, *own)
    config = config_file.load("smoke", overrides)
    for name in config.decoders:
        prompts = prompts_for(config, name, load_tokenizer(config.decoders[name]), window=1024)
        tokens = [
            prompts.wire(Example(**{**row, "answers": tuple(row["answers"])})) for row in rows
        ]
        assert len(prompts.long_questions) == 1
        assert [prompts.fits(each) for each in tokens] == [i % 2 == 0 for i in range(60)]
    (said,) = run_distributed(warned_on_rank, 1, overrides)
    assert "1 questions have no place in the window of" in said
    assert "use a larger wire.ratio" not in said


def warned_on_rank(rank: int, world_size: int, overrides: list[str]) -> str:
    config = config_file.load("smoke", overrides)
    plan = preflight(config, world_size=world_size)
    plan.run_folder.mkdir(parents=True)
    log_to(plan.run_folder / "log", rank=0)
    groups = ProcessGroups(plan.topology, device=torch.device("cpu"), timeout=60)
    warn_of_long(assemble(config, groups), sample_documents(config))
    return (plan.run_folder / "log").read_text()
