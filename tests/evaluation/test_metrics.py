"""Metrics against values worked out by hand."""

import dataclasses
import json
import math
import random
from typing import Any

import pytest

from latentwire.evaluation.metrics import (
    Prediction,
    arm_scores,
    bootstrap_ci95,
    exact_match,
    f1,
    normalised_score,
    normalize,
    summarize,
)


def prediction(example: int = 0, **changes: Any) -> Prediction:
    base = Prediction(
        example=example,
        document=example,
        decoder="llama",
        arm="text",
        kind="plain",
        question="Where?",
        answers=("Paris",),
        prediction="Paris",
        nll_sum=1.0,
        num_tokens=2,
        first_correct=True,
        first_in_top5=True,
    )
    return dataclasses.replace(base, **changes)


# --- one prediction


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat, sat!", "cat sat"),
        ("an apple a day", "apple day"),
        ("theatre and area", "theatre and area"),
        ("U.S.A.", "usa"),
        ("the", ""),
        ("  \n", ""),
    ],
)
def test_normal_form(text: str, expected: str) -> None:
    assert normalize(text) == expected


def test_exact_match() -> None:
    assert exact_match("The Eiffel Tower.", ["eiffel tower"]) == 1.0
    assert exact_match("tower", ["eiffel tower"]) == 0.0
    assert exact_match("b", ["a b c", "B!"]) == 1.0
    assert exact_match("", ["the"]) == 1.0
    assert exact_match("", ["x"]) == 0.0


def test_f1_by_hand() -> None:
    # 2 common of 3 predicted and 4 gold: P = 2/3, R = 1/2.
    assert f1("red blue green", ["red blue x y"]) == pytest.approx(4 / 7)
    assert f1("red", ["blue"]) == 0.0
    assert f1("blue red", ["red blue"]) == 1.0


def test_f1_counts_repeated_tokens() -> None:
    # As sets both would be {x}, and the score 1. One common token of 3 and 1: 2 * 1 / 4.
    assert f1("x x x", ["x"]) == 0.5
    assert f1("x", ["x x x"]) == 0.5
    # min(2, 3) = 2 common x, 1 common y, of 3 and 4.
    assert f1("x x y", ["x x x y"]) == pytest.approx(6 / 7)


def test_f1_takes_the_best_answer() -> None:
    assert f1("red blue", ["green", "red", "red blue z"]) == pytest.approx(4 / 5)


def test_f1_of_nothing() -> None:
    assert f1("", ["the"]) == 1.0
    assert f1("", ["x"]) == 0.0
    assert f1("x", ["the"]) == 0.0


# --- intervals


def test_interval_contains_the_mean_and_shrinks() -> None:
    rng = random.Random(0)
    widths = []
    for size in (20, 200, 2000):
        values = [float(rng.random() < 0.7) for _ in range(size)]
        low, high = bootstrap_ci95(values)
        mean = sum(values) / size
        assert 0 <= low <= mean <= high <= 1
        # The normal approximation of the same interval.
        assert high - low == pytest.approx(2 * 1.96 * math.sqrt(mean * (1 - mean) / size), rel=0.25)
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2]


def test_interval_resamples_whole_documents() -> None:
    """Ten documents that succeed or fail as a whole are ten observations, not sixty."""
    outcomes = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    values = [outcome for outcome in outcomes for _ in range(6)]
    documents = [document for document in range(10) for _ in range(6)]
    assert bootstrap_ci95(values, documents=documents) == bootstrap_ci95(outcomes)
    low, high = bootstrap_ci95(values)
    wide_low, wide_high = bootstrap_ci95(values, documents=documents)
    assert wide_high - wide_low > 1.5 * (high - low)


def test_interval_weighs_documents_by_their_questions() -> None:
    # Three right answers on each even document, a wrong one on each odd one: the mean is 0.75.
    documents = [document for document in range(80) for _ in range(1 if document % 2 else 3)]
    values = [float(document % 2 == 0) for document in documents]
    low, high = bootstrap_ci95(values, documents=documents)
    assert 0.6 < low < 0.75 < high < 0.9
    assert bootstrap_ci95([1.0, 0.0], documents=[7, 7]) == (0.5, 0.5)


def test_arm_scores_take_intervals_over_documents() -> None:
    items = [prediction(i, document=0, prediction=("Paris", "Rome")[i % 2]) for i in range(10)]
    scores = arm_scores(items)
    assert scores["em_ci95"] == scores["f1_ci95"] == [0.5, 0.5], "one document tells no spread"


def test_interval_is_deterministic() -> None:
    values = [0.1 * i for i in range(30)]
    assert bootstrap_ci95(values, seed=1) == bootstrap_ci95(values, seed=1)
    assert bootstrap_ci95(values, seed=1) != bootstrap_ci95(values, seed=2)


def test_interval_of_few_values() -> None:
    assert bootstrap_ci95([0.25]) == (0.25, 0.25)
    assert bootstrap_ci95([1.0, 1.0, 1.0]) == (1.0, 1.0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_ci95([])


def test_interval_is_drawn_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [float(i % 3 == 0) for i in range(100)]
    monkeypatch.setattr("latentwire.evaluation.metrics._RESAMPLED_AT_ONCE", 250)
    low, high = bootstrap_ci95(values, num_resamples=301)
    assert 0.2 < low < 0.34 < high < 0.5


# --- normalised score


def test_normalised_score() -> None:
    assert normalised_score(0.7, 0.1, 0.9) == pytest.approx(0.75)
    assert normalised_score(0.1, 0.1, 0.9) == 0.0
    assert normalised_score(0.0, 0.1, 0.9) == pytest.approx(-0.125)
    assert normalised_score(1.0, 0.1, 0.9) == pytest.approx(1.125)


def test_normalised_score_without_a_gap() -> None:
    assert normalised_score(0.5, 0.5, 0.519) is None
    assert normalised_score(0.5, 0.9, 0.5) is None
    assert normalised_score(0.5, 0.0, 0.02) == pytest.approx(25)


# --- tables


def test_arm_scores_by_hand() -> None:
    scores = arm_scores(
        [
            prediction(0, nll_sum=1.0, num_tokens=1),
            prediction(
                1, nll_sum=1.0, num_tokens=3, prediction="paris france", first_correct=False
            ),
            prediction(2, nll_sum=4.0, num_tokens=4, prediction="Rome", first_correct=False),
            prediction(3, nll_sum=2.0, num_tokens=2, prediction="Rome", first_in_top5=False),
        ]
    )
    assert scores["em"] == 0.25
    assert scores["f1"] == pytest.approx((1 + 2 / 3) / 4)
    assert scores["nll_per_token"] == pytest.approx(8 / 10), "weighted by tokens, not by example"
    assert scores["first_acc"] == 0.5
    assert scores["first_acc_top5"] == 0.75
    assert scores["num_examples"] == 4
    assert scores["num_distinct"] == 3
    for name in ("em", "f1", "first_acc"):
        low, high = scores[f"{name}_ci95"]
        assert low <= scores[name] <= high
    assert "em_by_kind" not in scores


def test_em_by_kind() -> None:
    scores = arm_scores(
        [
            prediction(0, kind="shared", prediction="x"),
            prediction(1, kind="shared"),
            prediction(2),
        ]
    )
    assert scores["em_by_kind"] == {"plain": 1.0, "shared": 0.5}


def test_unbounded_likelihood_is_none() -> None:
    scores = arm_scores([prediction(0, nll_sum=math.inf), prediction(1)])
    assert scores["nll_per_token"] is None


def evaluation() -> list[Prediction]:
    """Two decoders, four arms, 40 examples; text 0.8, no context 0.0, latent 0.4 exact match."""
    rng = random.Random(1)
    right = {"text": 32, "no_context": 0, "latent": 16, "wrong_wire": 4}
    return [
        prediction(
            example,
            decoder=decoder,
            arm=arm,
            prediction="Paris" if example < limit else f"wrong {example % 5}",
            nll_sum=rng.random(),
            context_tokens=(60 if example % 2 else 40) * (2 if decoder == "qwen" else 1),
            wire_positions=10 if arm == "latent" else None,
            wire_bytes=(100 + example) if arm == "latent" else (7 if arm == "wrong_wire" else None),
            text_bytes=200 + example,
            kind="shared" if example % 3 else "plain",
        )
        for decoder in ("llama", "qwen")
        for arm, limit in right.items()
        for example in range(40)
    ]


ARMS = ("text", "no_context", "latent", "wrong_wire")


def test_summary_by_hand() -> None:
    result = summarize(evaluation(), decoders=["llama", "qwen"], arms=ARMS)
    assert result["num_examples"] == 40
    assert result["wire_bytes"] == pytest.approx(119.5), "of the latent arm only"
    assert result["text_bytes"] == pytest.approx(219.5)
    llama, qwen = result["decoders"]["llama"], result["decoders"]["qwen"]
    assert list(llama["arms"]) == list(ARMS)
    assert llama["arms"]["text"]["em"] == 0.8
    # The mean of the ratios, which is not the ratio of the means.
    assert llama["compression_tokens"] == pytest.approx((6 + 4) / 2)
    assert qwen["compression_tokens"] == pytest.approx(10)
    assert llama["normalised_em"] == pytest.approx(0.5)
    assert llama["normalised_f1"] == pytest.approx(0.5)


def test_compression_is_the_mean_of_ratios() -> None:
    items = [
        prediction(0, arm="latent", context_tokens=100, wire_positions=10),
        prediction(1, arm="latent", context_tokens=10, wire_positions=5),
    ]
    result = summarize(items, decoders=["llama"], arms=["latent"])
    assert result["decoders"]["llama"]["compression_tokens"] == 6.0


def test_summary_does_not_depend_on_order() -> None:
    items = evaluation()
    expected = json.dumps(summarize(items, decoders=["llama", "qwen"], arms=ARMS))
    for seed in range(3):
        random.Random(seed).shuffle(items)
        assert json.dumps(summarize(items, decoders=["llama", "qwen"], arms=ARMS)) == expected


def test_summary_is_strict_json() -> None:
    result = summarize(evaluation(), decoders=["llama", "qwen"], arms=ARMS)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_summary_without_the_other_arms() -> None:
    result = summarize([prediction(0)], decoders=["llama"], arms=["text"])
    llama = result["decoders"]["llama"]
    assert llama["normalised_em"] is None and llama["compression_tokens"] is None
    assert result["wire_bytes"] is None and result["text_bytes"] is None


def test_an_example_counted_twice_is_refused() -> None:
    with pytest.raises(AssertionError, match="twice"):
        summarize([prediction(0), prediction(0)], decoders=["llama"], arms=["text"])
