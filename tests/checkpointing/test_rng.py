"""Random generators go on where they were."""

import random
from pathlib import Path

import numpy as np
import torch

from latentwire.checkpointing import rng


def draws() -> list[float]:
    """Some from every generator; a normal number leaves half of a pair behind."""
    found = [random.gauss(0, 1), float(np.random.standard_normal()), float(torch.randn(()))]
    return [*found, random.random(), float(np.random.random_sample())]


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
