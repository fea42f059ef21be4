"""``status.json``: what scripts and schedulers read to learn how a run stands."""

import json
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from latentwire.diagnostics.run_files import FILES, STATUS, read_status
from latentwire.files import publish
from latentwire.training.run_lock import SUFFIX

_writing = threading.Lock()
"""What a run's thread says while it runs may not replace how it has ended."""


def write_status(
    folder: Path,
    *,
    state: str,
    code: int | None = None,
    reason: str = "",
    stage: str | None = None,
    step: int | None = None,
    num_steps: Mapping[str, int] | None = None,
    diagnostics: Path | None = None,
    stream: Mapping[str, Any] | None = None,
    trouble: str = "",
    health: Mapping[str, str] | None = None,
    begun_by: Mapping[str, str | None] | None = None,
) -> None:
    """Replaces the status atomically; ``stage``, ``step``, ``num_steps``, ``stream``, ``health``,
    ``begun_by`` and the path of the diagnostics stay as they were when not given.

    Args:
        state: running, finished, preempted, stopped or failed.
        code: the worker's exit code, None while it runs.
        num_steps: how long each stage will be.
        stream: what the diagnostics came to: rows written, dropped, late.
        health: state of each decoder's wire.
        begun_by: the launch whose attempts are at it, as ``attempts.launch``.
        trouble: what keeps diagnostics from being written at present.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _writing:
        before = read_status(folder)
        files = {name: str(folder / file) for name, file in FILES.items()}
        diagnosed = {**(before.get("diagnostics") or {}), **(stream or {}), "trouble": trouble}
        files["diagnostics"] = str(diagnostics or diagnostics_path(folder))
        status: dict[str, Any] = {
            "state": state,
            "code": code,
            "stage": before.get("stage") if stage is None else stage,
            "step": before.get("step") if step is None else step,
            "num_steps": before.get("num_steps") if num_steps is None else dict(num_steps),
            "reason": reason,
            "time": _now(),
            "diagnostics": diagnosed,
            "health": dict(health) if health is not None else before.get("health") or {},
            "begun_by": before.get("begun_by") if begun_by is None else dict(begun_by),
            "files": files,
        }
        _publish(folder, status)


def note_refusal(folder: Path, reason: str) -> None:
    """Adds to a run's status, which stays what it is, that a command was refused just now."""
    with _writing:
        _publish(folder, read_status(folder) | {"refused": {"time": _now(), "reason": reason}})


def _publish(folder: Path, status: Mapping[str, Any]) -> None:
    # A disk that is slow to sync holds nobody up.
    publish(folder / STATUS, (json.dumps(status, indent=2) + "\n").encode(), durably=False)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def is_foreign(folder: Path, *, known: Sequence[str] = ("config.yaml", "status.json")) -> bool:
    """Whether a folder holds files, and none of those that every run, or what it saves, has.

    Args:
        known: names of those.
    """
    if not folder.is_dir() or any((folder / name).exists() for name in known):
        return False
    # Locks are taken before the rest is there.
    return any(not path.is_symlink() and path.suffix != SUFFIX for path in folder.iterdir())


def diagnostics_path(folder: Path) -> Path:
    """Where a run's diagnostics are, as its status tells."""
    known = (read_status(folder).get("files") or {}).get("diagnostics")
    return folder / FILES["diagnostics"] if known is None else Path(known)
