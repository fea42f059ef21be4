"""A run's decoders end as they were loaded, and one that does not ends the run."""

import json
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from conftest import small_overrides

from latentwire import config_file
from latentwire.config import DecoderConfig
from latentwire.decoders.fingerprint import combined, fingerprint
from latentwire.decoders.loading import load_decoder
from latentwire.testing import run_distributed
from latentwire.training import run
from latentwire.training.preflight import preflight
from latentwire.training.trainer import Trainer

SETTINGS = {
    "zero2": ("none", "zero2"),
    "fsdp nf4": ("nf4", "fsdp"),
    "zero3 int8": ("int8", "zero3"),
}


def train_on_rank(rank: int, world_size: int, overrides: list[str]) -> str:
    config = config_file.load("smoke", overrides)
    return run.train(preflight(config, world_size=world_size)).state


def evaluate_on_rank(rank: int, world_size: int, overrides: list[str]) -> str:
    config = config_file.load("smoke", overrides)
    return run.evaluate_only(preflight(config, world_size=world_size, evaluation=True)).state


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_leaves_its_decoders_as_they_were_loaded(
    name: str, pair: Path, tmp_path: Path
) -> None:
    """The hashes in the metrics are those of the files, loaded anew in this process."""
    kind, backend = SETTINGS[name]
    overrides = small_overrides(pair, tmp_path, *jobs.BACKENDS[backend])
    overrides += [f"decoders.{decoder}.quantization={kind}" for decoder in ("llama", "qwen")]
    expected = {}
    for decoder in ("llama", "qwen"):
        config = DecoderConfig(model=str(pair / decoder), quantization=kind)  # type: ignore[arg-type]
        loaded = load_decoder(decoder, config, dtype=torch.float32, device=torch.device("cpu"))
        expected[decoder] = combined(fingerprint(loaded.model))
    assert run_distributed(train_on_rank, 2, overrides) == ["finished", "finished"]
    folder = tmp_path / "runs" / "test"
    assert json.loads((folder / "metrics.json").read_text())["decoder_hashes"] == expected
    (folder / "metrics.json").unlink()
    assert run_distributed(evaluate_on_rank, 2, overrides) == ["finished", "finished"]
    assert json.loads((folder / "metrics.json").read_text())["decoder_hashes"] == expected
    assert f"decoders unchanged: llama {expected['llama']}" in (folder / "pipeline.log").read_text()


def spoil_on_rank(rank: int, world_size: int, overrides: list[str]) -> str:
    """Trains, with one number of one decoder's norm changed at the last step, on its rank only."""
    step = Trainer.step

    def spoiled(self: Trainer, plan: Any, prepared: Any) -> Any:
        if plan.is_last and rank == 1:
            model: Any = self._job.decoders["qwen"].model
            model.model.norm.weight[0] += 1e-3
        return step(self, plan, prepared)

    Trainer.step = spoiled  # type: ignore[method-assign]
    with pytest.raises(RuntimeError) as caught:
        train_on_rank(rank, world_size, overrides)
    return str(caught.value)


def test_a_decoder_that_changed_ends_the_run_on_every_rank(pair: Path, tmp_path: Path) -> None:
    messages = run_distributed(spoil_on_rank, 2, small_overrides(pair, tmp_path))
    assert messages == ["a frozen decoder changed: 'qwen' on rank 1 (model.norm.weight)"] * 2
    assert not (tmp_path / "runs" / "test" / "metrics.json").exists()
