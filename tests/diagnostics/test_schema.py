"""The documented form of a row: complete, in step with the README, and what it refuses."""

from typing import Any

import jsonschema
import pytest
from conftest import REPOSITORY

from latentwire.config import OBJECTIVES
from latentwire.config_checks import _PARTS
from latentwire.diagnostics.schema import field_table, load_schema
from latentwire.diagnostics.stream import SCHEMA
from latentwire.wire.parts import PARTS

SCOPES = {"local", "group", "world", "run", "world, or group"}
HEAD = {
    "schema": SCHEMA,
    "run": "test",
    "time": "2026-01-01T00:00:00.000+00:00",
    "stage": "A",
    "step": 1,
    "rank": 0,
    "decoder": "one",
    "dropped": 0,
}
STEP: dict[str, Any] = HEAD | {
    "kind": "step",
    "mode": "latent",
    "tf": None,
    "first_acc": 0.5,
    "grad_norm": 1.0,
    "skipped": False,
    "step_seconds": 0.1,
    "num_examples": 12,
}
HEALTH: dict[str, Any] = HEAD | {
    "kind": "health",
    "state": "alive",
    "reasons": [],
    "nll_right": 1.0,
    "nll_wrong": 2.0,
    "right_minus_wrong": -1.0,
}


def test_the_schema_is_one_and_describes_every_field() -> None:
    schema = load_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for form in schema["$defs"].values():
        for field in [*form["properties"].values(), *form["patternProperties"].values()]:
            assert field["description"].endswith(".") and field["x-unit"]
            assert field["x-scope"] in SCOPES
        assert form["additionalProperties"] is False
        assert form["properties"]["schema"]["const"] == SCHEMA


def test_objectives_and_parts_are_those_of_the_package() -> None:
    assert tuple(_PARTS) == PARTS, "the configuration's floor cannot import them"
    patterns = " ".join(load_schema()["$defs"]["step"]["patternProperties"])
    assert "|".join(OBJECTIVES) in patterns and "|".join(PARTS) in patterns


def test_the_readme_has_the_table() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = text.split("## Diagnostics\n")[1].split("\n## ")[0]
    assert field_table() in section


@pytest.mark.parametrize(
    "row",
    [
        STEP,
        STEP | {"grad_tf": 0.1, "grad_tf/encoder": None, "nonfinite": ["grad_tf/encoder"]},
        STEP | {"grad_norm/lora": 0.1, "grad_norm_clipped/lora": 0.1, "late": True},
        HEALTH,
        HEALTH | {"update_ratio/adapter": 0.1, "slowest_ranks": [{"rank": 3, "step_seconds": 1.0}]},
    ],
)
def test_rows_are_accepted(row: dict[str, Any]) -> None:
    jsonschema.validate(row, load_schema())


@pytest.mark.parametrize(
    "row",
    [
        STEP | {"unheard": 1},
        STEP | {"grad_tf/decoder": 1.0},
        STEP | {"kind": "health"},
        STEP | {"step": 0},
        STEP | {"late": False},
        {key: value for key, value in STEP.items() if key != "dropped"},
        HEALTH | {"state": "ill"},
        HEALTH | {"grad_tf": 1.0},
    ],
)
def test_rows_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(row, load_schema())
