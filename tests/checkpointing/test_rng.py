"""Random generators go on where they were."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from latentwire.checkpointing import rng


def draws() -> list[float]:
    """Some from every generator; a normal number leaves half of a pair behind."""
    found = [random.gauss(0, 1), float(np.random.standard_normal()), float(torch.randn(()))]
    return [*found, random.random(), float(np.random.random_sample())]


def test_the_file_is_durable_before_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of which one file is empty after a power cut would be refused whole."""
    path, synced = tmp_path / "rng.safetensors", []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(path.exists()), sync(file)))
    rng.write(path, rng.capture())
    assert synced[0] is False and len(synced) == 2, "the file, and then its name"


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    draws()
    rng.write(tmp_path / "rng.safetensors", rng.capture())
    expected = draws() + draws()
    draws()
    rng.restore(tmp_path / "rng.safetensors")
    assert draws() + draws() == expected
