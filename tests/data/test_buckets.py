"""Batches of alike lengths: less padding, and still every example once, at any position."""

import random

import pytest

from latentwire.data.sampler import Buckets, Sampler

SIZES = {
    "even": [6] * 60,
    "uneven": [random.Random(0).randint(0, 9) for _ in range(80)],
    "one question": [1] * 200,
}
LENGTHS = [random.Random(n).randint(50, 4000) for n in range(200)]


def make(sizes: list[int], *, batch_size: int = 24, num_batches: int = 5, seed: int = 0) -> Sampler:
    buckets = Buckets(length=LENGTHS.__getitem__, batch_size=batch_size, num_batches=num_batches)
    return Sampler(
        sizes,
        seed=seed,
        stage="B",
        questions_per_context=6,
        buckets=buckets if num_batches else None,
    )


def waste(sampler: Sampler, batch_size: int, num_batches: int) -> float:
    """Share of padding where every batch is as wide as its longest text."""
    used = padded = 0
    for number in range(num_batches):
        documents = {d for d, _ in sampler.take(number * batch_size, batch_size)}
        lengths = [LENGTHS[document] for document in documents]
        used, padded = used + sum(lengths), padded + max(lengths) * len(lengths)
    return 1 - used / padded


@pytest.mark.parametrize("name", list(SIZES))
@pytest.mark.parametrize("batch_size", [8, 24])
def test_an_epoch_visits_every_example_once(name: str, batch_size: int) -> None:
    sizes = SIZES[name]
    every = [(document, q) for document, count in enumerate(sizes) for q in range(count)]
    sampler = make(sizes, batch_size=batch_size)
    for epoch in range(3):
        assert sorted(sampler.take(epoch * len(every), len(every))) == every


@pytest.mark.parametrize("name", list(SIZES))
def test_any_position_gives_what_going_through_gives(name: str) -> None:
    number = sum(SIZES[name])
    through = make(SIZES[name]).take(0, 3 * number)
    jumping = make(SIZES[name])
    for start in (2 * number + 7, 0, number - 3, 50, 2 * number - 30, 49):
        assert jumping.take(start, 40) == through[start : start + 40]
    assert make(SIZES[name], seed=1).take(0, number) != through[:number]


@pytest.mark.parametrize("name", list(SIZES))
def test_chunks_stay_together(name: str) -> None:
    order = make(SIZES[name]).take(0, sum(SIZES[name]))
    runs = [d for place, (d, _) in enumerate(order) if not place or order[place - 1][0] != d]
    for document, count in enumerate(SIZES[name]):
        assert runs.count(document) <= -(-count // 6)


@pytest.mark.parametrize("name", list(SIZES))
def test_batches_are_of_alike_lengths_in_any_order(name: str) -> None:
    sizes = SIZES[name]
    num_batches = 2 * sum(sizes) // 24  # beyond an epoch's end, which is no batch's
    before = waste(make(sizes, num_batches=0), 24, num_batches)
    after = waste(make(sizes, num_batches=10), 24, num_batches)
    assert before > 0.3 and after < 0.6 * before, (before, after)
    sampler = make(sizes, num_batches=100)
    longest = [
        max(LENGTHS[d] for d, _ in sampler.take(24 * number, 24)) for number in range(num_batches)
    ]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_batches_that_chunks_do_not_fill_are_of_alike_lengths_too() -> None:
    """Chunks of six in batches of eight: three batches at a time."""
    before = waste(make([6] * 100, batch_size=8, num_batches=0), 8, 70)
    after = waste(make([6] * 100, batch_size=8, num_batches=15), 8, 70)
    assert after < 0.7 * before, (before, after)


def test_no_bucket_changes_nothing() -> None:
    plain = Sampler(SIZES["uneven"], seed=0, stage="B", questions_per_context=6)
    assert make(SIZES["uneven"], num_batches=0).take(0, 900) == plain.take(0, 900)
