"""What does not fit is said before training, and again of what a stage has read."""

import re
from pathlib import Path

from conftest import small_overrides

from latentwire import config_file
from latentwire.testing import run_distributed
from latentwire.training import run
from latentwire.training.preflight import preflight


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
