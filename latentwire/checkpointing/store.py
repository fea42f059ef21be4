"""A unit's state in safetensors files: weights and both optimizer moments, nothing pickled."""

import json
import os
import re
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentwire.config import ConfigError
from latentwire.distributed.sharding import UnitState

_FILES = ("weights", "first_moments", "second_moments")


def write_unit(folder: Path, state: UnitState) -> None:
    """Writes one unit's state into ``folder``, durably; on an error nothing of it stays.

    Raises:
        OSError: the files cannot be written, with the system's own error number.
    """
    folder.mkdir(parents=True)
    try:
        for name in _FILES:
            tensors: dict[str, Tensor] = getattr(state, name)
            path = folder / f"{name}.safetensors"
            _save(tensors, path, metadata={"num_steps": json.dumps(state.num_steps)})
            with path.open("rb") as file:
                os.fsync(file.fileno())
    except OSError:
        # A full disk needs the room for the message that says so.
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _save(tensors: dict[str, Tensor], path: Path, *, metadata: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        # The library keeps the system's error number in its text only.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error


def read_unit(folder: Path, *, with_optimizer: bool = True) -> UnitState:
    """Reads one unit's state.

    Raises:
        ConfigError: when a file is missing or damaged, naming it.
    """
    tensors: dict[str, dict[str, Tensor]] = {}
    for name in _FILES:
        path = folder / f"{name}.safetensors"
        if name != "weights" and not with_optimizer:
            tensors[name] = {}
            continue
        try:
            tensors[name] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ConfigError([f"the checkpoint file {path} cannot be read: {error}"]) from error
    return UnitState(
        weights=tensors["weights"],
        first_moments=tensors["first_moments"],
        second_moments=tensors["second_moments"],
        num_steps=_num_steps(folder),
    )


def _num_steps(folder: Path) -> int:
    with safe_open(folder / "weights.safetensors", framework="pt") as file:
        return int(json.loads((file.metadata() or {})["num_steps"]))
