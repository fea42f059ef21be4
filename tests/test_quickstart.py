"""The quickstart as a newcomer runs it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

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


SHORTER = ("train.stage_b.steps=400", "eval.ratios=[]")
"""Half of the steps of Stage B, one ratio: nearly as good, in half of the time."""


def check_wire(result: dict[str, Any]) -> None:
    em = {arm: values["em"] for arm, values in result["arms"].items()}
    assert em["text"] >= 0.95
    assert em["latent"] >= 0.88 * em["text"]
    assert result["compression_tokens"] >= 4
    assert em["wrong_wire"] <= max(0.15, em["no_context"] + 0.05)
    # As many text tokens as the wire has positions do not do what the wire does.
    assert em["truncated_text"] < em["latent"] - 0.3
    assert em["zero_wire"] < em["latent"] - 0.3


@pytest.mark.slow
@pytest.mark.timeout(2200)
def test_both_decoders_read_the_wire_nearly_as_well_as_the_text(
    environment_is_set_up: None, tmp_path: Path
) -> None:
    """The quickstart, once; a second call shows the table and trains nothing."""
    quickstart(tmp_path, *SHORTER, timeout=1800)
    run = tmp_path / "runs" / "quickstart"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["decoders"].keys() == {"llama", "qwen"}
    for result in metrics["decoders"].values():
        check_wire(result)

    before = (run / "diagnostics.jsonl").read_bytes()
    quickstart(tmp_path, *SHORTER, timeout=240)
    assert (run / "diagnostics.jsonl").read_bytes() == before
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["code"]) == ("finished", 0)
    for name in ("config.yaml", "pipeline.log", "predictions.jsonl", "ckpt"):
        assert (run / name).exists(), name
