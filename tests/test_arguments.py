"""The trainer's flags: the same as their keys, and never silently against them."""

import pytest

from latentwire import arguments, config_file
from latentwire.config import ConfigError, flatten

CASES: dict[str, tuple[list[str], object]] = {
    "--use_deep_prefix": ([], True),
    "--deep_prefix_len": (["24"], 24),
    "--use_gist_head": ([], True),
    "--gist_weight": (["0.25"], 0.25),
    "--grad_diag_interval": (["7"], 7),
    "--grad_diag_components": (["tf,kd"], ("tf", "kd")),
    "--diagnostic_log": (["some dir/log.jsonl"], "some dir/log.jsonl"),
}


@pytest.mark.parametrize("name", arguments.FLAGS)
def test_a_flag_sets_its_key(name: str) -> None:
    value, expected = CASES[name]
    # A weight or length is refused where its part is left out.
    parts = ["adapter.use_deep_prefix=true", "gist.use_gist_head=true"]
    given = arguments.parse(["run.tag=x", name, *value, *parts])
    config = config_file.load(given.recipe, given.overrides)
    assert flatten(config)[arguments.FLAGS[name].key] == expected
    assert config.run.tag == "x"


@pytest.mark.parametrize("name", arguments.FLAGS)
def test_a_flag_against_its_key_is_an_error_that_names_both(name: str) -> None:
    value, _ = CASES[name]
    key = arguments.FLAGS[name].key
    with pytest.raises(ConfigError) as caught:
        arguments.parse([name, *value, f"{key}=0"])
    (problem,) = caught.value.problems
    assert name in problem and f"{key}=0" in problem


@pytest.mark.parametrize(
    "given",
    [
        ["--gist_weight", "0.1", "objectives.gist=1e-1"],
        ["--use_gist_head", "gist.use_gist_head=true"],
        ["--grad_diag_components", "tf,kd", "diagnostics.grad_diag_components=[tf, kd]"],
        ["--diagnostic_log", "a b", "diagnostics.diagnostic_log=a b"],
    ],
)
def test_the_same_value_twice_is_no_problem(given: list[str]) -> None:
    assert arguments.parse(given).overrides


def test_every_conflict_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        arguments.parse(
            ["--deep_prefix_len", "4", "adapter.deep_prefix_len=8"]
            + ["--gist_weight", "1", "objectives.gist=2"]
        )
    assert len(caught.value.problems) == 2


def test_a_shortened_flag_is_refused() -> None:
    with pytest.raises(ConfigError, match="--gist"):
        arguments.parse(["--gist", "1"])
