"""The draws of a step: functions of the step and the text, and nothing else."""

import random

import pytest

from latentwire.data.draws import StepDraws

TEXTS = [" ".join(f"word{number}" for number in range(size)) for size in range(1, 60)]


def everything(draws: StepDraws, texts: list[str]) -> list[object]:
    return [(draws.cut(t), draws.ratios_of(t), draws.keep(t, len(t) // 4)) for t in texts]


def test_draws_depend_on_the_step_and_the_text_only() -> None:
    settings = {"text_share": 0.8, "ratios": (2, 4, 8), "keep_prob": 0.5}
    draws = StepDraws(seed="0/A/7", **settings)  # type: ignore[arg-type]
    expected = everything(draws, TEXTS)
    random.seed(1)
    again = StepDraws(seed="0/A/7", **settings)  # type: ignore[arg-type]
    assert everything(again, TEXTS[::-1])[::-1] == expected, "in any order"
    other = StepDraws(seed="0/A/8", **settings)  # type: ignore[arg-type]
    assert everything(other, TEXTS) != expected
    assert other.keep(TEXTS[-1], 64) != draws.keep(TEXTS[-1], 64)


def test_a_step_without_draws_takes_all_of_a_text() -> None:
    assert everything(StepDraws(), ["one two"]) == [(7, (None,), (True,))]
    assert StepDraws().keep("", 0) == ()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 1.0])
def test_cut_is_at_a_white_space_of_the_last_part(share: float) -> None:
    text = TEXTS[-1]
    cuts = [StepDraws(seed=str(seed), text_share=share).cut(text) for seed in range(500)]
    assert all(text[cut : cut + 1] in (" ", "") for cut in cuts)
    # At a word's start, so up to one word before the place that is drawn.
    earliest = text.rfind(" ", 0, int(len(text) * (1 - share)) + 1)
    assert all(max(1, earliest) <= cut for cut in cuts)
    kept = [1 - cut / len(text) for cut in cuts]
    assert sum(kept) / len(kept) == pytest.approx(share / 2, abs=0.05), "even over that part"


def test_a_text_of_one_word_is_not_cut() -> None:
    assert StepDraws(seed="0", text_share=1.0).cut("unbroken" * 20) == 160


def test_ratios_are_drawn_evenly_or_all_taken() -> None:
    texts = [f"text {number}" for number in range(900)]
    sampled = StepDraws(seed="0", ratios=(2, 4, 8))
    drawn = [sampled.ratios_of(text) for text in texts]
    assert all(len(ratios) == 1 for ratios in drawn)
    for ratio in (2, 4, 8):
        assert drawn.count((ratio,)) == pytest.approx(300, abs=60)
    summed = StepDraws(seed="0", ratios=(2, 4, 8), ratio_mode="summed")
    assert {summed.ratios_of(text) for text in texts} == {(2, 4, 8)}


@pytest.mark.parametrize("probability", [0.9, 0.5, 0.1])
def test_latents_are_kept_at_their_rate(probability: float) -> None:
    draws = StepDraws(seed="0", keep_prob=probability)
    kept = [flag for number in range(100) for flag in draws.keep(f"text {number}", 100)]
    assert sum(kept) / len(kept) == pytest.approx(probability, abs=0.02)


@pytest.mark.parametrize("num_latents", [1, 2, 5])
def test_never_is_every_latent_dropped(num_latents: int) -> None:
    draws = StepDraws(seed="0", keep_prob=0.01)
    kept = [draws.keep(f"text {number}", num_latents) for number in range(200)]
    assert all(len(flags) == num_latents and any(flags) for flags in kept)
    assert {flags.index(True) for flags in kept} == set(range(num_latents)), "any of them remains"
