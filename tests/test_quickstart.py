"""The quickstart as a newcomer runs it."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY


def quickstart(tmp_path: Path, *arguments: str, timeout: float) -> None:
    """Runs the script with its files in ``tmp_path``."""
    overrides = [f"run.root={tmp_path / 'runs'}", f"checkpoint.root={tmp_path / 'checkpoints'}"]
    subprocess.run(
        [REPOSITORY / "launch" / "quickstart.sh", *overrides, *arguments],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"},
        timeout=timeout,
        check=True,
    )


@pytest.fixture
def environment_is_set_up(embedded_pair: Path) -> None:
    if not (REPOSITORY / ".venv" / ".setup-done").exists():
        pytest.skip("needs the environment that launch/setup.sh makes")


@pytest.mark.slow
def test_arguments_reach_the_trainer(environment_is_set_up: None, tmp_path: Path) -> None:
    quickstart(
        tmp_path,
        "run.tag=mine",
        "train.stage_a.steps=1",
        "train.stage_b.steps=1",
        "train.batch_size=12",
        "eval.samples=48",
        timeout=280,
    )
    metrics = json.loads((tmp_path / "runs" / "mine" / "metrics.json").read_text())
    assert metrics["decoders"].keys() == {"llama", "qwen"}
    for name, decoder in metrics["decoders"].items():
        assert decoder["compression_tokens"] >= 4, name
