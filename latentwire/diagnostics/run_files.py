"""What a run leaves in its folder, by the names that its status has.

What is not of the shape that a run leaves is left out here, so that no reader has to look for it.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from latentwire import strict_yaml
from latentwire.strict_json import read_object

log = logging.getLogger(__name__)

FILES = {
    "config": "config.yaml",
    "data": "data.json",
    "log": "pipeline.log",
    "diagnostics": "diagnostics.jsonl",
    "validation": "validation.jsonl",
    "metrics": "metrics.json",
    "predictions": "predictions.jsonl",
    "examples": "examples.jsonl",
    "report": "report.html",
    "checkpoints": "ckpt",
}
STATUS = "status.json"
_STATUS: dict[str, type] = {
    **dict.fromkeys(("state", "reason", "stage", "time"), str),
    **dict.fromkeys(("code", "step"), int),
    **dict.fromkeys(("num_steps", "diagnostics", "health", "begun_by", "files", "refused"), dict),
}
"""Types of a status's keys; any may be null."""


def read_status(folder: Path) -> dict[str, Any]:
    """The status, or an empty mapping where there is none."""
    try:
        found = read_object(folder / STATUS)
    except (OSError, ValueError):
        return {}
    status: dict[str, Any] = {
        key: value
        for key, value in found.items()
        if value is None or isinstance(value, _STATUS.get(key, object))
    }
    if status.get("files"):
        status["files"] = {
            name: path
            for name, path in status["files"].items()
            if isinstance(path, str) and "\0" not in path
        }
    return status


def read_metrics(folder: Path) -> dict[str, Any]:
    """What Stage C found, or an empty mapping where it has not run.

    ``decoders`` is left out where it holds no decoder with arms.
    """
    path = folder / FILES["metrics"]
    try:
        found = read_object(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s is left out: %s", path, error)
        return {}
    decoders = {
        name: _of_shape({**decoder, "arms": arms}, ("gist",))
        for name, decoder in _mappings(found.pop("decoders", None)).items()
        if (arms := _mappings(decoder.get("arms")))
    }
    return _of_shape(found, ("checkpoint",)) | ({"decoders": decoders} if decoders else {})


def _mappings(tree: object) -> dict[str, dict[str, Any]]:
    """Values that are mappings themselves."""
    pairs = tree.items() if isinstance(tree, dict) else ()
    return {name: value for name, value in pairs if isinstance(value, dict)}


def _of_shape(tree: dict[str, Any], mappings: Iterable[str]) -> dict[str, Any]:
    """Without what should be a mapping and is none."""
    wrong = {key for key in mappings if not isinstance(tree.get(key), dict)}
    return {key: value for key, value in tree.items() if key not in wrong}


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
