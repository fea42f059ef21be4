"""The trainer in processes of its own, as a user or a launcher starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import REPOSITORY


def python(
    *arguments: str, nproc: int = 0, timeout: float = 150
) -> subprocess.CompletedProcess[str]:
    """``python -m ...`` as a user runs it; under torchrun with ``nproc`` processes."""
    return subprocess.run(
        command(*arguments, nproc=nproc),
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def command(*arguments: str, nproc: int) -> list[str]:
    """The command line of ``python``."""
    launcher = ["-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={nproc}"]
    launcher += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--local-addr=localhost"]
    return [sys.executable, *(launcher if nproc else []), *arguments]


def status(tmp_path: Path) -> dict[str, Any]:
    """``status.json`` of the run that ``small_overrides`` describes."""
    found: dict[str, Any] = json.loads((tmp_path / "runs" / "test" / "status.json").read_text())
    return found
