"""The folder a run leaves: its configuration, its log, and the way to its checkpoints."""

import logging
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import yaml
from transformers.utils import logging as transformers_logging

from latentwire import config_file
from latentwire.files import replace_text
from latentwire.training import run_lock
from latentwire.training.preflight import Plan

_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "deepspeed",
    "bitsandbytes",
    "datasets",
)


def prepare(plan: Plan, *, wipe: bool) -> None:
    """Creates the run's folders on rank 0, with the link to the checkpoints."""
    if wipe:
        _empty(plan.run_folder)
        _empty(plan.checkpoint_folder)
    plan.run_folder.mkdir(parents=True, exist_ok=True)
    plan.checkpoint_folder.mkdir(parents=True, exist_ok=True)
    plan.diagnostics.parent.mkdir(parents=True, exist_ok=True)
    link = plan.run_folder / "ckpt"
    if link.is_symlink():
        link.unlink()
    link.symlink_to(plan.checkpoint_folder.resolve(), target_is_directory=True)


def record(plan: Plan) -> None:
    """Writes the run's ``config.yaml``: what it is from now on, for whoever continues it."""
    text = yaml.safe_dump(config_file.to_tree(plan.config), sort_keys=False)
    comment = "".join(f"# {line}\n" for line in environment())
    replace_text(plan.run_folder / "config.yaml", comment + text)


def _empty(folder: Path) -> None:
    """Removes everything but locks, which this job holds."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix == run_lock.SUFFIX:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def environment() -> list[str]:
    """Git commit and package versions, for the record."""
    lines = [f"python {sys.version.split()[0]}"]
    for name in _PACKAGES:
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    root = config_file.REPOSITORY
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
        lines.append(f"git {commit}")
    except (OSError, subprocess.SubprocessError):
        lines.append("git unknown")
    return lines


PROGRESS = "latentwire.progress"
"""Logger of lines that a progress bar shows already, where there is one."""


def log_to(path: Path | None, *, rank: int) -> None:
    """Rank 0 logs to stderr and to ``path``; other ranks only what is wrong."""
    logger = logging.getLogger("latentwire")
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logger.propagate = False
    logger.handlers.clear()
    # peft imports it whether it is used or not, and without a GPU it misses a kernel.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    who = "" if rank == 0 else f"rank {rank}: "
    screen = logging.StreamHandler()
    screen.setFormatter(logging.Formatter(f"{who}%(message)s"))
    if sys.stderr.isatty():
        screen.addFilter(lambda record: record.name != PROGRESS)
    else:
        transformers_logging.disable_progress_bar()
    logger.addHandler(screen)
    if path is not None and rank == 0:
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(file)
    if os.environ.get("LATENTWIRE_DEBUG"):
        logger.setLevel(logging.DEBUG)
