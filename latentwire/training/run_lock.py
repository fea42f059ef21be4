"""One job at a time on a run: a lock that ends with the process that holds it."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from latentwire.config import ConfigError

SUFFIX = ".lock"
FILE = f"run{SUFFIX}"
_WAIT_SECONDS = 5.0
"""A job that was just killed may take a moment to end."""
_WAIT_FOR_ITSELF_SECONDS = 180.0
"""An earlier attempt of the same job, whose node is dead: a file server keeps its lock for as long
as it waits for that node to come back."""


class RunLock:
    """Holds a run's folders for this process while entered.

    The lock is the system's (``flock``), so that no dead job holds it; the file's text only tells
    people who does. On a file system that has no locks the run goes on without.

    Args:
        folders: by the key that sets the folder around each; made if they are not there.
        files: outside of them, by key; the lock of each lies beside it.

    Raises:
        ConfigError: on entering, when another process holds one of them, or one cannot be made.
    """

    def __init__(
        self, folders: Mapping[str, Path], *, files: Mapping[str, Path] | None = None
    ) -> None:
        self._folders = dict(folders)
        self._files = dict(files or {})
        self._held = ExitStack()

    def __enter__(self) -> "RunLock":
        with ExitStack() as held:
            for key, folder in self._folders.items():
                held.enter_context(_locked(folder / FILE, key=key, what=folder, choice="run.tag"))
            for key, file in self._files.items():
                real = file.resolve()
                beside = real.with_name(f"{real.name}{SUFFIX}")
                held.enter_context(_locked(beside, key=key, what=file, choice=key))
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()


def _locked(path: Path, *, key: str, what: Path, choice: str) -> IO[str]:
    """Takes one lock.

    Args:
        key: says where ``what`` is.
        choice: the key that would choose another one.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{key}: '{what.parent}' cannot be written: {error}"]) from None
    start = time.monotonic()
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                return file
            file.seek(0)
            who = file.read().strip() or "it does not say which"
            limit = _WAIT_FOR_ITSELF_SECONDS if _is_own_job(who) else _WAIT_SECONDS
            if time.monotonic() > start + limit:
                file.close()
                raise ConfigError(
                    [
                        f"{choice}: another job has {what} ({who}); wait for it, stop it, or "
                        "set another"
                    ]
                ) from None
            time.sleep(0.1)
    file.truncate(0)
    holder: dict[str, object] = {"host": socket.gethostname(), "pid": os.getpid()}
    if job := os.environ.get("SLURM_JOB_ID"):
        holder["slurm_job"] = job
    file.write(json.dumps(holder) + "\n")
    file.flush()
    return file


def is_held(folder: Path) -> bool:
    """Whether another process has the run at present."""
    try:
        with (folder / FILE).open("r", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


def _is_own_job(holder: str) -> bool:
    """Whether a lock's text is of this scheduler's job: of an attempt before this one."""
    job = os.environ.get("SLURM_JOB_ID")
    try:
        tree = json.loads(holder)
    except ValueError:
        return False
    return job is not None and isinstance(tree, dict) and tree.get("slurm_job") == job
