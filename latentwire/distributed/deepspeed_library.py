"""The one place that imports DeepSpeed, so that it comes up the same way for everyone."""

import importlib.util
import logging
import os
import sys
import warnings
from typing import Any

import torch


def is_installed() -> bool:
    return importlib.util.find_spec("deepspeed") is not None


def load_deepspeed() -> Any:
    """The library, quiet, with nothing compiled; imported by those who ask for it only."""
    # Its own detection warns about every machine without a GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    # It calls two collectives of torch by their older names, at every step.
    warnings.filterwarnings("ignore", r".*_tensor` is deprecated", FutureWarning)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # On a CPU it would compile a shared-memory all-reduce at its first start: over a minute, and
    # with g++. Only its inference of models split over ranks uses that.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    return deepspeed


def start_deepspeed() -> Any:
    """The library, on the process groups that exist already."""
    deepspeed = load_deepspeed()
    # Only a launcher sets the variable it asks for; the same default as for our device.
    os.environ.setdefault("LOCAL_RANK", "0")
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed
