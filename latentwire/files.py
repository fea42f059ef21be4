"""Small files written so that they survive a crash, and read so that a damaged one is named."""

import errno
import json
import os
import re
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

UNFINISHED = ".tmp"
"""End of the name of a file that is being written."""
_ABANDONED_SECONDS = 24 * 3600.0
"""A folder that nothing was added to for so long is nobody's who still writes."""

_SHOWN = 60
"""Characters of a name that a message quotes."""
_OF_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
"""Errors of a name that no file can have there; the others are those of the file."""


def is_bad_name(error: OSError) -> bool:
    """Whether it is the name that is wrong, and not what is found there."""
    return error.errno in _OF_NAMES


def name_problem(error: OSError) -> str:
    """What an error that names a file says, in one line, however long the name is."""
    name = str(error.filename)
    shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}... ({len(name)} characters)"
    mend = "give another name" if is_bad_name(error) else "give one that can be used"
    return f"'{shown}': {error.strerror}; {mend}"


def write_json(path: Path, value: Any) -> None:
    """Writes JSON durably."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text durably."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_json(path: Path, value: Any) -> None:
    """Writes JSON durably, and at once for whoever reads the file meanwhile."""
    replace_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Writes a text durably, and at once for whoever reads the file meanwhile."""
    publish(path, text.encode())


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fresh_name(path: Path) -> Path:
    """A name beside ``path`` that is of this process and call alone: what others have there, or
    the user, stays, and other jobs may be at work in the same folder."""
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{UNFINISHED}")


def remove_abandoned(path: Path) -> None:
    """Removes folders by names of ``fresh_name`` that killed processes left beside ``path``."""
    ours = re.compile(re.escape(path.name) + r"\.\d+-[0-9a-f]{8}" + re.escape(UNFINISHED))
    with suppress(OSError):  # what cannot be removed is in nobody's way
        for folder in path.parent.iterdir():
            is_ours = ours.fullmatch(folder.name) and not folder.is_symlink() and folder.is_dir()
            if is_ours and time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def publish(path: Path, data: bytes, *, durably: bool = True) -> None:
    """Writes a file that appears whole or not at all, whoever else writes the same one.

    Args:
        durably: it survives a crash of the machine too.

    Raises:
        OSError: it cannot be written; nothing of it is left, unless the process is killed.
    """
    fresh = fresh_name(path)
    try:
        with fresh.open("wb") as file:
            file.write(data)
            if durably:
                file.flush()
                os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    if durably:
        sync_folder(path.parent)
