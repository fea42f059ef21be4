"""Attempts of one command: a launcher or a scheduler that starts it again gives the same arguments,
but what deletes a run or takes it back is done once."""

import os
from pathlib import Path

from latentwire.training.status import read_status


def launch() -> dict[str, str | None]:
    """What all attempts of this process's command have in common: the scheduler's job, the
    launcher's run."""
    return {
        "job": os.environ.get("SLURM_JOB_ID"),
        "launch": os.environ.get("TORCHELASTIC_RUN_ID"),
    }


def has_begun(folder: Path) -> bool:
    """Whether an earlier attempt of this process's command has begun with the run in ``folder``."""
    own, begun = launch(), read_status(folder).get("begun_by")
    if not isinstance(begun, dict):
        return False
    for counter, key in (
        ("SLURM_RESTART_COUNT", "job"),
        ("TORCHELASTIC_RESTART_COUNT", "launch"),
    ):
        if os.environ.get(counter, "0") not in ("", "0"):
            return own[key] is not None and begun.get(key) == own[key]
    return False
