"""YAML of which nothing is lost unsaid, and whose every mistake is one error in one line."""

from pathlib import Path

import pytest
import yaml
from config_cases import MINIMAL, only_problem, write

from latentwire import config_file, strict_yaml
from latentwire.arguments import parse
from latentwire.config import ConfigError
from latentwire.report.run_data import read_run
from latentwire.training.preflight import recorded_config

BAD_VALUES = [
    "2024-02-31",
    "0x_",
    "!!int foo",
    "!!float ''",
    "!!bool maybe",
    "!!timestamp x",
    "7" * 5000,
    "0x" + "f" * 5000,
    "[" * 3000,
]
"""Each made PyYAML raise something that is no ``YAMLError``, or is no number to work with."""


@pytest.mark.parametrize("text", BAD_VALUES, ids=lambda text: text[:12])
def test_a_value_that_is_not_what_it_says_is_one_error_in_one_line(text: str) -> None:
    with pytest.raises(strict_yaml.StrictYamlError) as caught:
        strict_yaml.load(f"key: {text}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("eval: {}\nrun: {}\neval: {}", "line 3: the key 'eval' is given twice, first in line 1"),
        ("{tf: 1, tf: 2}", "line 1: the key 'tf' is given twice"),
        ("a: {b: 1}\nc:\n  - {d: 1, 'd': 2}", "line 3: the key 'd' is given twice"),
        ("1: a\n0x1: b", "line 2: the key '1' is given twice"),
    ],
)
def test_a_key_given_twice_is_named_with_its_lines(text: str, expected: str) -> None:
    assert yaml.safe_load(text), "PyYAML drops the first"
    with pytest.raises(strict_yaml.StrictYamlError) as caught:
        strict_yaml.load(text)
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    "text",
    [
        "base: &b {x: 1, y: 2}\nown: &o {<<: *b, x: 3}\nlast: {<<: [*o, *b], y: 4}",
        "[1, 0x1f, -7, 1e4, 1_000, .inf, 2024-02-29, yes, ~, 'x', !!set {a, b}]",
        "{1: a, '1': b, 1.5: c, ~: d}",
        "",
    ],
)
def test_everything_else_reads_as_before(text: str) -> None:
    assert strict_yaml.load(text) == yaml.safe_load(text)


def test_it_makes_no_objects() -> None:
    with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
        strict_yaml.load("!!python/object/apply:os.getcwd []")


# --- whoever reads YAML


@pytest.mark.parametrize("value", BAD_VALUES, ids=lambda text: text[:12])
def test_an_override_or_recipe_with_such_a_value_is_refused(tmp_path: Path, value: str) -> None:
    problem = only_problem(write(tmp_path, ""), f"wire.ratio={value}")
    assert problem.startswith("wire.ratio: '") and "no valid YAML" in problem
    assert len(problem) < 400
    problem = only_problem(write(tmp_path, f"wire: {{ratio: {value}}}"))
    assert problem.startswith("--recipe: ") and "no valid YAML" in problem


def test_an_override_or_recipe_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    assert "'tf' is given twice" in only_problem(write(tmp_path, ""), "objectives={tf: 1, tf: 2}")
    recipe = write(tmp_path, "eval: {samples: 3}\nrun: {seed: 1}\neval: {batch_size: 3}\n")
    problem = only_problem(recipe)
    assert "line 10: the key 'eval' is given twice, first in line 8" in problem


def test_a_flag_beside_such_a_value_is_refused_and_no_traceback() -> None:
    with pytest.raises(ConfigError, match="both set objectives.gist"):
        parse(["--gist_weight", "2024-02-31", "objectives.gist=1"])


@pytest.mark.parametrize(
    "text", ["rows: {a: 1}\nrows: {b: 2}", "rows: 2024-02-31", "rows: [" * 400]
)
def test_a_file_of_keys_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "rows.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="rows.yaml: cannot be read"):
        config_file.read_mapping(file, ["rows"])


@pytest.mark.parametrize("kept", [b"run: {tag: \xff}", b"run: {seed: 1}\nrun: {}", b"run: 0x_"])
def test_a_runs_configuration_that_cannot_be_read_is_said(tmp_path: Path, kept: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(MINIMAL.encode() + kept)
    with pytest.raises(ConfigError, match="config.yaml cannot be read"):
        recorded_config(tmp_path, tmp_path / "none")
    assert read_run(tmp_path).name == tmp_path.name, "a report is made of what is left"
