"""What gauges mean, and that they measure what they say."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from latentwire.diagnostics.gauges import wire_shape
from latentwire.diagnostics.health import Health, Verdict
from latentwire.training.doctor import Doctor

GOOD: dict[str, Any] = {
    "nll_right": 1.0,
    "nll_wrong": 2.0,
    "right_minus_wrong": -1.0,
    "teacher_nll": 0.2,
    "chance_nll": 7.0,
    "wire_rms_ratio": 1.0,
    "wire_rank": 30.0,
    "wire_cosine": 0.3,
    "update_ratio/encoder": 0.01,
    "update_ratio/adapter": 0.02,
}


def judged(*readings: dict[str, Any], warmup: int = 100, first_step: int = 20) -> list[Verdict]:
    """Verdicts on readings that are twenty steps apart."""
    health = Health(warmup=warmup)
    return [
        health.judge("one", GOOD | reading, steps=first_step + 20 * index)
        for index, reading in enumerate(readings)
    ]


def test_a_wire_warms_up_and_lives() -> None:
    verdicts = judged(*({"right_minus_wrong": -m} for m in (0.001, 0.02, 0.04, 0.3, 0.5)))
    assert [v.state for v in verdicts] == ["warming"] * 3 + ["alive"] * 2
    assert "until step 100" in verdicts[0].reasons[0]
    assert verdicts[-1].reasons == ()


def test_a_wire_that_stays_no_better_than_a_wrong_one_has_collapsed() -> None:
    verdicts = judged(*({"right_minus_wrong": -0.01} for _ in range(5)))
    assert [v.state for v in verdicts] == ["warming"] * 4 + ["collapsed"]
    assert "after 100 steps" in verdicts[-1].reasons[0]


def test_a_wire_that_loses_what_it_had_has_collapsed() -> None:
    verdicts = judged(*({"right_minus_wrong": -m} for m in (0.5, 0.2, 0.04)))
    assert [v.state for v in verdicts] == ["alive", "alive", "collapsed"]
    assert "was by 0.5000" in verdicts[-1].reasons[0]


@pytest.mark.parametrize(
    ("reading", "state", "words"),
    [
        ({"right_minus_wrong": 0.0}, "collapsed", "nothing gets through"),
        ({"teacher_nll": 6.0}, "collapsed", "labels are broken"),
        ({"weight_growth/encoder": 8.0}, "exploding", "the encoder's weights are 8.0 times"),
        ({"update_ratio/adapter": 0.5}, "exploding", "moves the adapter by 0.50"),
        ({"nll_right": math.nan}, "exploding", "nll_right is not finite"),
    ],
)
def test_what_is_wrong_at_any_age(reading: dict[str, Any], state: str, words: str) -> None:
    (verdict,) = judged(reading)
    assert verdict.state == state
    assert words in "; ".join(verdict.reasons)


def test_what_grows_explodes() -> None:
    assert judged({}, {"nll_right": 10.5})[-1].state == "exploding"
    assert judged({}, {"nll_right": 9.5})[-1].state == "alive", "a bad guess at most"
    assert judged({}, {"wire_rms_ratio": 50.0})[-1].state == "exploding"
    assert judged({"wire_rms_ratio": 20.0}, {"wire_rms_ratio": 50.0})[-1].state == "alive"


def test_a_wire_without_a_soft_prompt_has_no_size_to_judge() -> None:
    without = {"wire_rms_ratio": None}
    assert [v.state for v in judged(without, without)] == ["alive", "alive"]


def test_steps_are_those_that_were_trained() -> None:
    settings = SimpleNamespace(stop_on_collapse=False, health_warmup=200)
    job: Any = SimpleNamespace(
        groups=SimpleNamespace(rank=0), config=SimpleNamespace(diagnostics=settings)
    )
    stages: Any = [SimpleNamespace(name=name, num_steps=1000) for name in ("A", "B")]
    step: Any = SimpleNamespace(stage="A", step=60)
    doctor = Doctor(job, [], stages=stages)
    assert doctor.num_trained("A", 60) == 60
    doctor.passed(step)
    assert doctor.num_trained("B", 100) == 160, "Stage A ended early"
    memory = json.loads(json.dumps(doctor.memory()))
    assert Doctor(job, [], stages=stages, memory=memory).num_trained("B", 100) == 160
    del memory["steps"]
    assert Doctor(job, [], stages=stages, memory=memory).num_trained("B", 100) == 1100


def test_what_grows_slowly_learns() -> None:
    grown = {"weight_growth/deep_prefix": 8.0}
    assert judged(grown, first_step=200)[-1].state == "exploding"
    assert judged(grown, first_step=2000)[-1].state == "alive"


def test_latents_that_are_all_alike_have_collapsed_when_warm() -> None:
    alike = {"wire_cosine": 0.9999, "wire_rank": 1.1}
    assert judged(alike)[-1].state == "alive"
    (verdict,) = judged(alike, first_step=100)
    assert verdict.state == "collapsed" and "all latents are alike" in verdict.reasons[0]


def test_a_part_that_no_gradient_reaches_is_named() -> None:
    health = Health(warmup=100)
    verdict = health.judge("one", GOOD, steps=20, unreached=["encoder", "lora"])
    assert verdict.state == "collapsed"
    assert verdict.reasons == ("the encoder does not learn: no gradient reaches it",), (
        "there is no lora"
    )


def test_decoders_are_judged_apart() -> None:
    health = Health(warmup=100)
    assert health.judge("one", GOOD, steps=20).state == "alive"
    weak = GOOD | {"right_minus_wrong": -0.01}
    assert health.judge("two", weak, steps=40).state == "warming"


def test_the_shape_of_a_wire() -> None:
    same = torch.ones(8, 4)
    found = wire_shape(same)
    assert found["wire_rank"] == pytest.approx(1.0, abs=1e-6)
    assert found["wire_cosine"] == pytest.approx(1.0)
    found = wire_shape(torch.eye(4))
    assert found["wire_rank"] == pytest.approx(4.0)
    assert found["wire_cosine"] == pytest.approx(0.0, abs=1e-12)
    torch.manual_seed(0)
    some = torch.randn(6, 4)
    pairs = [
        float(torch.cosine_similarity(some[i], some[j], dim=0))
        for i in range(6)
        for j in range(6)
        if i != j
    ]
    assert wire_shape(some)["wire_cosine"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
