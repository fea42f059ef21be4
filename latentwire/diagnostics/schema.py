"""The documented form of a diagnostics row, and its fields as a table."""

import json
from importlib import resources
from typing import Any


def load_schema() -> dict[str, Any]:
    """The JSON Schema of one line of ``diagnostics.jsonl``."""
    file = resources.files("latentwire.diagnostics") / "schema.json"
    schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return schema


def field_table() -> str:
    """Every field with its unit, whose value it is, and its meaning, as Markdown."""
    kinds = load_schema()["$defs"]
    lines = ["| key | rows | of | unit | meaning |", "|---|---|---|---|---|"]
    shared = [key for key in kinds["step"]["properties"] if key in kinds["health"]["properties"]]
    shared = [key for key in shared if key not in ("kind", "num_examples")]
    for key in shared:
        lines.append(_line(f"`{key}`", "all", kinds["step"]["properties"][key]))
    for kind, form in kinds.items():
        fields = {key: own for key, own in form["properties"].items() if key not in shared}
        patterns = {own["x-name"]: own for own in form["patternProperties"].values()}
        lines += [_line(f"`{key}`", kind, own) for key, own in {**patterns, **fields}.items()]
    return "\n".join(lines) + "\n"


def _line(name: str, rows: str, field: dict[str, Any]) -> str:
    meaning = field["description"].replace("|", "\\|")
    return f"| {name} | {rows} | {field['x-scope']} | {field['x-unit']} | {meaning} |"
