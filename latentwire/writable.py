"""Whether a result can be written where the user wants it, asked before the work it is made by."""

import os
from collections.abc import Mapping
from pathlib import Path

from latentwire.config import ConfigError
from latentwire.files import fresh_name

_PROBE = b"\0" * 4096
"""A full disk takes an empty file."""


def folder_problems(roots: Mapping[str, str]) -> list[str]:
    """Whether folders can be made under each root, as far as that shows without making any."""
    found = []
    for key, root in roots.items():
        there = Path(root).absolute()
        while not there.exists():
            there = there.parent
        if not there.is_dir():
            found.append(f"{key}: '{root}' cannot be a folder: {there} is a file")
        elif not os.access(there, os.W_OK | os.X_OK):
            found.append(f"{key}: '{root}' cannot be written: no permission in {there}")
    return found


def make_folder(flag: str, folder: Path) -> None:
    """Makes a folder and tries it with a file.

    Raises:
        ConfigError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _probe(folder / "probe")
    except OSError as error:
        raise _refused(flag, folder, error) from None


def check_file(flag: str, path: Path) -> None:
    """Tries a file, whose folder is made; what it holds stays as it is.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        if path.is_file():
            path.open("ab").close()
        elif not path.exists() or path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
            path.unlink()
            _probe(path)
    except OSError as error:
        raise _refused(flag, path, error) from None


def _probe(path: Path) -> None:
    fresh = fresh_name(path)
    try:
        with fresh.open("wb") as file:
            file.write(_PROBE)
            file.flush()
            os.fsync(file.fileno())
    finally:
        fresh.unlink(missing_ok=True)


def _refused(flag: str, path: Path, error: OSError) -> ConfigError:
    return ConfigError([f"{flag}: {path} cannot be written: {error}; name another"])
