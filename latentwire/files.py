"""Small files written so that they survive a crash, and read so that a damaged one is named."""

import errno
import json
import os
import secrets
from pathlib import Path
from typing import Any

UNFINISHED = ".tmp"
"""End of the name of a file that is being written."""

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
    fresh = path.with_suffix(".tmp")
    write_text(fresh, text)
    os.replace(fresh, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(path: Path, data: bytes, *, durably: bool = True) -> None:
    """Writes a file that appears whole or not at all, whoever else writes the same one.

    Args:
        durably: it survives a crash of the machine too.

    Raises:
        OSError: it cannot be written; nothing of it is left, unless the process is killed.
    """
    # Of this process and call alone, as other jobs may be at work in the same folder.
    fresh = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{UNFINISHED}")
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
