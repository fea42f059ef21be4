"""Automatic weights: shares of the gradient, and how they are kept."""

import json
import math
import random

import pytest

from latentwire.objectives.balance import KEEP, LIMIT, Balance, balanced

WEIGHTS = {"tf": 1.0, "kd": 2.0, "span": 0.5, "gist": 0.0}
NORMS = {"tf": 3.0, "kd": 1.0, "span": 9.0, "gist": 4.0}
SQUARES = {name: norm**2 for name, norm in NORMS.items()}


def test_shares_of_the_gradient_are_those_of_the_weights() -> None:
    found = balanced(WEIGHTS, SQUARES)
    assert set(found) == {"tf", "kd", "span"}, "an objective without weight has no share"
    sizes = {name: found[name] * WEIGHTS[name] * NORMS[name] for name in found}
    assert sizes["kd"] / sizes["tf"] == pytest.approx(2.0)
    assert sizes["span"] / sizes["tf"] == pytest.approx(0.5)
    assert sum(sizes.values()) == pytest.approx(3.0 + 2.0 + 4.5), "the size is kept"


def test_balanced_gradients_are_left_alone() -> None:
    found = balanced(WEIGHTS, dict.fromkeys(WEIGHTS, 6.25))
    assert list(found.values()) == pytest.approx([1.0, 1.0, 1.0])
    assert balanced({"tf": 3.0}, {"tf": 0.04}) == pytest.approx({"tf": 1.0})


@pytest.mark.parametrize("square", [0.0, math.inf, math.nan])
def test_an_objective_without_usable_gradient_takes_no_part(square: float) -> None:
    others = {name: value for name, value in WEIGHTS.items() if name != "kd"}
    assert balanced(WEIGHTS, SQUARES | {"kd": square}) == balanced(others, SQUARES)
    assert balanced({"kd": 1.0}, {"kd": square}) == {}
    assert Balance().updated(WEIGHTS, {"kd": square}).applied(WEIGHTS) == WEIGHTS


def test_multipliers_are_limited() -> None:
    found = balanced({"a": 1.0, "b": 1.0}, {"a": 1e20, "b": 1e-300})
    assert found["b"] == LIMIT
    assert 1 / LIMIT <= found["a"] <= 1


def test_order_changes_nothing() -> None:
    generator = random.Random(0)
    names = [f"objective-{i}" for i in range(12)]
    weights = {name: generator.uniform(0.01, 3) for name in names}
    squares = {name: generator.lognormvariate(0, 4) for name in names}
    turned = {name: squares[name] for name in reversed(names)}
    assert balanced(dict(reversed(weights.items())), turned) == balanced(weights, squares)


def test_average_starts_with_the_first_measurement_and_closes_in() -> None:
    wanted = balanced(WEIGHTS, SQUARES)
    balance = Balance().updated(WEIGHTS, SQUARES)
    assert balance.multipliers == wanted
    changed = SQUARES | {"tf": 400.0}
    target = balanced(WEIGHTS, changed)["tf"]
    gaps = []
    for _ in range(4):
        balance = balance.updated(WEIGHTS, changed)
        gaps.append(math.log(balance.multipliers["tf"] / target))
    first_gap = math.log(wanted["tf"] / target)
    assert gaps == pytest.approx([first_gap * KEEP**n for n in (1, 2, 3, 4)])


def test_an_objective_of_some_steps_only_keeps_its_multiplier() -> None:
    before = Balance().updated(WEIGHTS, SQUARES)
    after = before.updated(WEIGHTS, {"tf": 1.0, "span": 4.0, "kd": 0.0})
    assert after.multipliers["kd"] == before.multipliers["kd"]
    assert after.multipliers["tf"] != before.multipliers["tf"]


def test_applied_keeps_weights_of_zero_and_of_the_unmeasured() -> None:
    found = Balance(multipliers={"tf": 3.0}).applied({"tf": 0.5, "kd": 2.0, "gist": 0.0})
    assert found == {"tf": 1.5, "kd": 2.0, "gist": 0.0}


def test_state_survives_json_exactly() -> None:
    balance = Balance().updated(WEIGHTS, SQUARES).updated(WEIGHTS, SQUARES | {"kd": 7.7})
    assert Balance.from_state(json.loads(json.dumps(balance.state()))) == balance
