"""Values of a parsed row, checked: what is there as it should be, or a message in JSON's words."""

import re
from typing import Any


class MalformedError(Exception):
    """One place of a file is wrong; the message has no file or line yet."""


def text_at(row: dict[str, Any], key: str, shape: str = "") -> str:
    """The text under ``key``, without white space around it.

    Args:
        shape: what a row looks like, for the message about one without the key.
    """
    if row.get(key) is None:
        raise MalformedError(
            f"`{key}` is {kind_at(row, key)}" + (f"; a row is {shape}" if shape else "")
        )
    return clean(row[key], f"`{key}`")


def optional_text(row: dict[str, Any], key: str) -> str | None:
    """The text under ``key``; None where there is none, or only white space."""
    value = row.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return clean(value, f"`{key}`")


def clean(value: Any, name: str) -> str:
    """``value`` as a text that a tokenizer can read; ``name`` is how a message calls it."""
    text = string(value, name).strip()
    if not text:
        raise MalformedError(f"{name} is empty")
    return text


def string(value: Any, name: str) -> str:
    """``value`` as a text that may be empty, as it stands."""
    if not isinstance(value, str):
        raise MalformedError(f"{name} is {kind(value)}, not a string")
    # JSON can escape half of a surrogate pair, which no tokenizer can encode.
    if re.search("[\ud800-\udfff]", value):
        raise MalformedError(f"{name} holds an unpaired surrogate, which is no character")
    return value


def mapping(value: Any) -> dict[str, Any]:
    """``value`` as an object."""
    if not isinstance(value, dict):
        raise MalformedError(f"this is {kind(value)}, not an object")
    return value


def list_at(row: dict[str, Any], key: str) -> list[Any]:
    """The list under ``key``."""
    value = row.get(key)
    if not isinstance(value, list):
        raise MalformedError(f"`{key}` is {kind_at(row, key)}, not a list")
    return value


def kind_at(row: dict[str, Any], key: str) -> str:
    """What stands under a key, in JSON's words."""
    return kind(row[key]) if key in row else "missing"


def kind(value: Any) -> str:
    """What a value is, in JSON's words."""
    names = {str: "a string", list: "a list", dict: "an object", bool: str(value).lower()}
    return "null" if value is None else names.get(type(value), f"the number {value!r:.20}")
