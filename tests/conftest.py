"""Shared fixtures: a very small random pair, and the embedded pair where it is checked out."""

import dataclasses
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from config_cases import MINIMAL

from latentwire import config_file
from latentwire.config import Config
from latentwire.data import tiny

REPOSITORY = Path(__file__).parent.parent
SMALL = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
HEADS = {"llama": (4, 2), "qwen": (3, 1)}
"""Query heads, and those of keys and values."""


def pytest_configure() -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Jobs of the tests are on the CPU, whatever the machine has.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # What every rank of a multi-process test would import anew.
    multiprocessing.set_forkserver_preload(
        [
            "latentwire.training.run",
            "latentwire.evaluation.runner",
            "transformers.models.llama.modeling_llama",
            "transformers.models.qwen2.modeling_qwen2",
            "peft",
            "deepspeed",
            "torch._dynamo",
        ]
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What may take longest comes first, so that at the end no worker waits for another's long test.
    items.sort(key=_time_limit, reverse=True)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _time_limit(item: pytest.Item) -> tuple[float, bool]:
    limit = item.get_closest_marker("timeout")
    is_slow = item.get_closest_marker("slow") is not None
    return (float(limit.args[0]) if limit and is_slow else 0.0, is_slow)


def narrow(spec: tiny.TinySpec) -> tiny.TinySpec:
    """The same family and tokenizer with two very small layers."""
    queries, keys = HEADS[spec.name]
    heads = {"num_attention_heads": queries, "num_key_value_heads": keys}
    return dataclasses.replace(spec, architecture=spec.architecture | SMALL | heads)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``llama`` and ``qwen``: real tokenizers, two random layers each."""
    root = tmp_path_factory.mktemp("pair")
    specs = tiny.load_specs(config_file.PACKAGED / "tiny.yaml")
    for name, spec in specs.items():
        spec = narrow(spec)
        tokenizer = tiny.build_tokenizer(spec, seed=0)
        torch.manual_seed(0)
        # Large enough that a different input shows in the logits.
        model = tiny.build_model(spec, tokenizer, initializer_range=0.2)
        tiny.save(model, tokenizer, root / name)
    return root


@pytest.fixture(scope="session")
def embedded_pair() -> Path:
    """The pretrained pair of the repository."""
    return shipped("tiny")


def shipped(size: str) -> Path:
    """A folder of models that the repository holds."""
    root = REPOSITORY / "checkpoints" / size
    if not (root / "llama" / "model.safetensors").is_file():
        pytest.skip(f"checkpoints/{size} is not in this checkout")
    return root


def small_overrides(pair: Path, tmp_path: Path, *more: str) -> list[str]:
    """Overrides that make the smoke recipe small, on ``pair``, with its files in ``tmp_path``."""
    return [
        f"encoder.model={pair / 'llama'}",
        f"decoders.llama.model={pair / 'llama'}",
        f"decoders.qwen.model={pair / 'qwen'}",
        f"run.root={tmp_path / 'runs'}",
        f"checkpoint.root={tmp_path / 'checkpoints'}",
        "run.tag=test",
        # An epoch that is quick to draw up.
        "data.samples=960",
        "objectives.kd=1",
        "objectives.first=0.5",
        "wire.d_z=32",
        "adapter.use_frame=true",
        "train.stage_a.ratios=[]",
        "train.stage_b.ratios=[]",
        "eval.ratios=[]",
        "train.batch_size=12",
        "train.stage_a.steps=2",
        "train.stage_a.encoder_start=0",
        "train.stage_b.steps=2",
        "checkpoint.interval=0",
        "diagnostics.log_interval=1",
        "diagnostics.grad_diag_interval=1",
        "diagnostics.grad_diag_units=none",
        "eval.samples=12",
        "eval.batch_size=12",
        *more,
    ]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """The smallest recipe that is valid, as a file."""
    path = tmp_path / "minimal.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    return str(path)


@pytest.fixture
def small_config(pair: Path, tmp_path: Path) -> Config:
    """The smoke recipe on the random pair, a few steps long."""
    return config_file.load("smoke", small_overrides(pair, tmp_path))
