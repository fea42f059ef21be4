"""The quickstart as a newcomer runs it, and what its table must show."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY


def quickstart(tmp_path: Path, *arguments: str, timeout: float) -> Path:
    """Runs the script with its files in ``tmp_path``; returns the run's folder."""
    overrides = [f"run.root={tmp_path / 'runs'}", f"checkpoint.root={tmp_path / 'checkpoints'}"]
    subprocess.run(
        [REPOSITORY / "launch" / "quickstart.sh", *overrides, *arguments],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"},
        timeout=timeout,
        check=True,
    )
    return tmp_path / "runs" / "quickstart"


@pytest.fixture
def environment_is_set_up(embedded_pair: Path) -> None:
    if not (REPOSITORY / ".venv" / ".setup-done").exists():
        pytest.skip("needs the environment that launch/setup.sh makes")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_quickstart_carries(environment_is_set_up: None, tmp_path: Path) -> None:
    """Both decoders answer from the wire nearly as from the text; a wrong wire is at chance."""
    folder = quickstart(tmp_path, timeout=2300)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["decoders"].keys() == {"llama", "qwen"}
    for name, decoder in metrics["decoders"].items():
        em = {arm: scores["em"] for arm, scores in decoder["arms"].items()}
        assert em["text"] >= 0.95, name
        assert em["latent"] >= 0.95 * em["text"], name
        assert decoder["compression_tokens"] >= 4, name
        assert em["wrong_wire"] <= max(0.15, em["no_context"] + 0.05), name
    again = quickstart(tmp_path, timeout=120)
    assert json.loads((again / "status.json").read_text())["state"] == "finished"


@pytest.mark.slow
def test_arguments_reach_the_trainer(environment_is_set_up: None, tmp_path: Path) -> None:
    quickstart(
        tmp_path,
        "run.tag=mine",
        "train.stage_a.steps=1",
        "train.stage_b.steps=1",
        "train.batch_size=12",
        "eval.samples=12",
        timeout=280,
    )
    assert (tmp_path / "runs" / "mine" / "metrics.json").is_file()
