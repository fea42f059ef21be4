"""Processes of a job under torchrun: found by rank, killed at a moment of the test's choice."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from conftest import REPOSITORY
from launching import command


def start(*overrides: str, nproc: int = 2, log: Path | None = None) -> subprocess.Popen[str]:
    """The trainer under torchrun, in a session of its own.

    Args:
        log: takes what it prints, which is kept for ``communicate`` without one.
    """
    with (log or Path(os.devnull)).open("a") as file:
        return subprocess.Popen(
            command("-m", "latentwire.train", *overrides, nproc=nproc),
            stderr=file if log else subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def ranks_of(launcher: int) -> dict[int, int]:
    """Process ids of torchrun's workers by global rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (path / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        ranks = [word[5:] for word in environment if word.startswith(b"RANK=")]
        if parent == launcher and ranks:
            found[int(ranks[0])] = int(path.name)
    return found


def rank_process(launcher: int, rank: int) -> int:
    """Process id of one rank under torchrun."""
    found = ranks_of(launcher)
    if rank not in found:
        raise AssertionError(f"rank {rank} is not running")
    return found[rank]


def kill(*processes: int) -> None:
    """SIGKILL; a process that is gone already is none."""
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def kill_job(process: "subprocess.Popen[str]") -> None:
    """SIGKILL to a launcher and all that it started, as a machine that loses power would."""
    workers = ranks_of(process.pid).values()
    kill(process.pid, *workers)
    process.wait(timeout=60)
    # One that waited for the disk may still end what it was at.
    assert wait_for(lambda: not any(map(_is_there, workers)), seconds=60)


def _is_there(process: int) -> bool:
    """Whether a process has not ended; one that nobody has asked about since has."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return words[0] not in "ZX"


def wait_for(condition: Callable[[], bool], *, seconds: float) -> bool:
    """Whether ``condition`` came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
