"""Random generators of one process: Python's, NumPy's and torch's, on every device it uses.

Each step seeds torch's generator for itself, so a resume repeats a step whatever these were; they
are kept for what draws from them between steps.
"""

import json
import random
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from latentwire.files import publish

_STATES = "generators"


def capture() -> tuple[dict[str, Tensor], str]:
    """The generators' states: torch's by device, and the others as JSON."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"cuda:{index}"] = state
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    plain = {
        "python": [version, list(words), gauss],
        "numpy": [name, keys.tolist(), int(position), int(has_gauss), float(cached)],  # type: ignore[union-attr]
    }
    return tensors, json.dumps(plain)


def write(path: Path, state: tuple[dict[str, Tensor], str]) -> None:
    """Writes what ``capture`` gave into a safetensors file, durably.

    Raises:
        OSError: it cannot be written.
    """
    tensors, plain = state
    publish(path, save(tensors, metadata={_STATES: plain}))


def restore(path: Path) -> None:
    """Sets this process's generators as they were.

    Raises:
        OSError: the file cannot be read.
    """
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        plain = json.loads((file.metadata() or {})[_STATES])
    version, words, gauss = plain["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = plain["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["cpu"])
    for device, state in tensors.items():
        if device != "cpu" and torch.cuda.is_available():
            index = int(device.split(":")[1])
            if index < torch.cuda.device_count():
                torch.cuda.set_rng_state(state, index)
