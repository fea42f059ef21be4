"""The one place that starts DeepSpeed, so that it comes up the same way for everyone."""

import importlib.util
import logging
import os
import sys
import warnings
from typing import Any

import torch


def is_installed() -> bool:
    return importlib.util.find_spec("deepspeed") is not None


def load_deepspeed(device_type: str | None = None) -> Any:
    """The library, quiet, with nothing compiled; imported by those who ask for it only.

    Args:
        device_type: what the job runs on; by default what this machine has.
    """
    # Its own detection warns about every machine without a GPU.
    found = "cuda" if torch.cuda.is_available() else "cpu"
    os.environ.setdefault("DS_ACCELERATOR", device_type or found)
    # It calls two collectives of torch by their older names, at every step.
    warnings.filterwarnings("ignore", r".*_tensor` is deprecated", FutureWarning)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # On a CPU it would compile a shared-memory all-reduce at its first start: over a minute, and
    # with g++. Only its inference of models split over ranks uses that.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    # ZeRO 3 compares the order of an engine's parameters over the whole world; the units of two
    # decoders may differ, and only the ranks of one group have to agree.
    coordinator = sys.modules["deepspeed.runtime.zero.partitioned_param_coordinator"]
    coordinator.assert_ints_same_as_other_ranks = lambda ints: None  # type: ignore[attr-defined]
    return deepspeed


def start_deepspeed(device_type: str) -> Any:
    """The library, on the process groups that exist already, for a job on ``device_type``."""
    deepspeed = load_deepspeed(device_type)
    chosen = deepspeed.accelerator.get_accelerator().device_name()
    assert chosen == device_type, f"DeepSpeed runs on {chosen} (DS_ACCELERATOR), not {device_type}"
    # Only a launcher sets the variable it asks for; the same default as for our device.
    os.environ.setdefault("LOCAL_RANK", "0")
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed
