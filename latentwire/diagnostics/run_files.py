"""What a run leaves in its folder, by the names that its status has."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from latentwire import strict_yaml

FILES = {
    "config": "config.yaml",
    "log": "pipeline.log",
    "diagnostics": "diagnostics.jsonl",
    "validation": "validation.jsonl",
    "metrics": "metrics.json",
    "predictions": "predictions.jsonl",
    "examples": "examples.jsonl",
    "report": "report.html",
    "checkpoints": "ckpt",
}


def own_rows(folder: Path, stream: Path, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the run in ``folder``: a stream elsewhere may be shared with other runs.

    Args:
        stream: the file that the rows are of.
    """
    found = list(rows)
    if stream.resolve().parent == folder.resolve():
        return found
    try:
        tag = strict_yaml.load_file(folder / FILES["config"])["run"]["tag"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        tag = folder.resolve().name
    return [row for row in found if row.get("run", tag) == tag]
