"""An ablation's YAML file: a default, and rows that each change a few keys of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentwire.config import ConfigError
from latentwire.config_file import read_mapping
from latentwire.sweep import written

_KEYS = ("title", "base", "overrides", "rows")
_ROW_KEYS = ("part", "change", "seeds", "learned")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of doing it."""

    name: str
    part: str
    """Of the method: rows of one part share a table and a plot."""
    change: tuple[str, ...] = ()
    """Overrides beside those of all rows."""
    seeds: tuple[int, ...] = (0,)
    learned: str = ""
    """One line, written when the results are in; no numbers, those are the table's."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What is compared with what; the first row is the default."""

    title: str = "Ablations"
    base: str
    overrides: tuple[str, ...]
    rows: tuple[Row, ...]


def read_file(path: Path) -> Ablation:
    """Reads an ablation's YAML file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    tree, problems = read_mapping(path, _KEYS)
    rows = tree.get("rows")
    if not isinstance(rows, dict) or not rows:
        problems.append(f"{path}: rows: should map names to rows, the default first")
        rows = {}
    if not isinstance(tree.get("overrides") or {}, dict):
        problems.append(f"{path}: overrides: should map configuration keys to values")
        tree["overrides"] = {}
    for name, row in rows.items():
        problems += [f"{path}: rows.{name}: {what}" for what in _row_problems(name, row)]
    if problems:
        raise ConfigError(problems)
    return Ablation(
        title=str(tree.get("title", Ablation.title)),
        base=str(tree.get("base", "smoke")),
        overrides=_overrides(tree.get("overrides") or {}),
        rows=tuple(
            Row(
                name=str(name),
                part=str(row["part"]),
                change=_overrides(row.get("change") or {}),
                seeds=tuple(row.get("seeds", [0])),
                learned=str(row.get("learned", "")).strip(),
            )
            for name, row in rows.items()
        ),
    )


def _row_problems(name: Any, row: Any) -> list[str]:
    if not isinstance(row, dict):
        return [f"should be a mapping with the keys {', '.join(_ROW_KEYS)}"]
    found = [f"unknown key '{key}'" for key in row if key not in _ROW_KEYS]
    if not str(name).replace("_", "").isalnum():
        found.append("a name has letters, digits and underscores")
    if not isinstance(row.get("part"), str):
        found.append("part: missing; which part of the method is it about?")
    if not isinstance(row.get("change") or {}, dict):
        found.append("change: should map configuration keys to values")
    seeds = row.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        found.append("seeds: should be a list of whole numbers")
    elif len(set(seeds)) < len(seeds):
        found.append(f"seeds: {seeds} should hold each seed once")
    if any(char.isdigit() for char in str(row.get("learned", ""))):
        found.append("learned: has a number; numbers are the table's, which measures them")
    return found


def _overrides(tree: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={written(value)}" for key, value in tree.items())
