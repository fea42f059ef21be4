"""JSON of other hands: files of a run may be torn, edited, or from another program, and their text
may be meant for the terminal that shows it."""

import json
import re
from pathlib import Path
from typing import Any

_MOST_DIGITS = 19
"""Longer whole numbers are no count of anything, and no float holds the longest."""
_SPACES = re.compile(r"[\t\n\r]+")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def parsed(text: bytes | str, *, nan: bool = True) -> Any:
    """A value of JSON.

    Args:
        nan: numbers that are not finite are taken as they are; None is in their place otherwise.

    Raises:
        ValueError: it is none, for whatever reason.
    """
    try:
        constants = float if nan else _none
        return json.loads(text, parse_int=_whole, parse_constant=constants)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_object(path: Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds none.
    """
    found = parsed(path.read_bytes(), nan=False)
    if not isinstance(found, dict):
        raise ValueError("it holds no object")
    return found


def printable(value: Any, *, depth: int = 20) -> Any:
    """A value of JSON with no character, in any string of it, that a terminal would obey.

    Args:
        depth: what is nested more deeply is of no run, and left out.
    """
    if not depth:
        return None
    if isinstance(value, str):
        return value if value.isprintable() else _CONTROLS.sub("\ufffd", _SPACES.sub(" ", value))
    if isinstance(value, dict):
        return {printable(k): printable(inner, depth=depth - 1) for k, inner in value.items()}
    if isinstance(value, list):
        return [printable(inner, depth=depth - 1) for inner in value]
    return value


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > _MOST_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _none(name: str) -> None:
    return None
