"""A minimal recipe, and how a refused configuration is looked at."""

from pathlib import Path
from typing import Any

import pytest

from latentwire import config_file
from latentwire.config import Config, ConfigError, flatten

MINIMAL = """
encoder: {model: some/encoder}
decoders:
  a: {model: some/a}
  b: {model: some/b}
train:
  stage_b: {steps: 1}
"""


def write(tmp_path: Path, text: str) -> str:
    """``MINIMAL`` with more top-level keys."""
    path = tmp_path / "more.yaml"
    path.write_text(MINIMAL + text, encoding="utf-8")
    return str(path)


def refused(recipe: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_file.load(recipe, overrides)
    assert str(caught.value) == "\n".join(caught.value.problems), "the user sees all of them"
    return caught.value.problems


def only_problem(recipe: str, *overrides: str) -> str:
    found = refused(recipe, *overrides)
    assert len(found) == 1, found
    return found[0]


def value(config: Config, key: str) -> Any:
    return flatten(config)[key]
