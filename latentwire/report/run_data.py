"""A run's folder, read for its report: what is missing stays empty, what is broken is said."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from latentwire import strict_yaml
from latentwire.config import ConfigError
from latentwire.diagnostics.reading import Row, rows, stream_path
from latentwire.diagnostics.run_files import FILES, own_rows, read_metrics, read_status

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What one run left."""

    name: str
    folder: Path
    status: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    """``config.yaml`` without its first comment lines."""
    config: dict[str, Any] = field(default_factory=dict)
    environment: list[str] = field(default_factory=list)
    """Those lines: package versions and the commit."""
    rows: list[Row] = field(default_factory=list)
    """Of the diagnostics, of every kind."""
    validations: list[Row] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    predictions: list[Row] = field(default_factory=list)
    contexts: dict[int, str] = field(default_factory=dict)
    """By the number that predictions name an example by."""


def read_run(folder: Path) -> RunData:
    """Reads what there is of a run.

    Raises:
        ConfigError: the folder holds no run.
    """
    if not any((folder / FILES[name]).is_file() for name in ("config", "diagnostics", "metrics")):
        raise ConfigError([f"{folder}: no such run; give a run's folder, e.g. runs/smoke"])
    text = _text(folder / FILES["config"])
    comments = [line for line in text.splitlines() if line.startswith("#")]
    config = _yaml(folder, text)
    stream = stream_path(folder)
    return RunData(
        name=folder.resolve().name,
        folder=folder,
        status=read_status(folder),
        config_text="\n".join(line for line in text.splitlines() if not line.startswith("#")),
        config=config,
        environment=[line.lstrip("# ") for line in comments],
        rows=own_rows(folder, stream, _lines(stream)),
        validations=[row for row in _lines(folder / FILES["validation"]) if _is_validation(row)],
        metrics=read_metrics(folder),
        predictions=[
            row
            for row in _lines(folder / FILES["predictions"])
            if isinstance(row.get("example"), int) and isinstance(row.get("answers"), list)
        ],
        contexts={
            row["example"]: str(row.get("context", ""))
            for row in _lines(folder / FILES["examples"])
            if isinstance(row.get("example"), int)
        },
    )


def _lines(path: Path) -> Iterator[Row]:
    if path.is_file():
        yield from rows(path)


def _text(path: Path) -> str:
    try:
        # A letter that is none is shown as such; a report is better than none.
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        log.warning("%s is left out: %s", path, error)
        return ""


def _is_validation(row: Row) -> bool:
    """Whether a row has scores by decoder."""
    scores = row.get("decoders", {})
    return isinstance(scores, dict) and all(isinstance(own, dict) for own in scores.values())


def _yaml(folder: Path, text: str) -> dict[str, Any]:
    try:
        found = strict_yaml.load(text)
    except yaml.YAMLError as error:
        log.warning("%s is no valid YAML: %s", folder / FILES["config"], error)
        return {}
    return found if isinstance(found, dict) else {}
