"""Sample order: every example once an epoch, any position at once, the same on every rank."""

import pytest

from latentwire.data.sampler import Sampler

COUNTS = [3, 0, 7, 1, 12, 6, 0, 5]
EVERY = [(document, q) for document, count in enumerate(COUNTS) for q in range(count)]


def make(
    counts: list[int] | None = None,
    *,
    seed: int = 0,
    stage: str = "A",
    chunk: int = 4,
    samples: int = 0,
) -> Sampler:
    return Sampler(
        COUNTS if counts is None else counts,
        seed=seed,
        stage=stage,
        questions_per_context=chunk,
        samples=samples,
    )


def epoch(sampler: Sampler, number: int = 0) -> list[tuple[int, int]]:
    return sampler.take(number * sampler.num_examples, sampler.num_examples)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_an_epoch_visits_every_example_once(chunk: int) -> None:
    sampler = make(chunk=chunk)
    assert sampler.num_examples == len(EVERY)
    for number in range(4):
        assert sorted(epoch(sampler, number)) == EVERY


def test_any_position_gives_what_going_through_gives() -> None:
    through = make().take(0, 5 * len(EVERY))
    jumping = make()
    for start, count in [(150, 20), (0, 3), (33, 2), (34, 1), (90, 60), (33, 35), (5, 0)]:
        assert jumping.take(start, count) == through[start : start + count]
        assert make().take(start, count) == through[start : start + count]


def test_order_depends_on_seed_stage_and_epoch() -> None:
    base = epoch(make())
    assert epoch(make()) == base
    assert epoch(make(seed=1)) != base
    assert epoch(make(stage="B")) != base
    assert epoch(make(), 1) != base
    assert epoch(make(), 1) != epoch(make(), 2)
    assert epoch(make(), 1) != epoch(make(seed=1), 0), "an epoch is not the next seed"


def test_order_is_shuffled_within_and_between_documents() -> None:
    order = epoch(make([6] * 50, chunk=6))
    assert [document for document, _ in order] != sorted(document for document, _ in order)
    first_questions = {order[start][1] for start in range(0, 300, 6)}
    assert len(first_questions) > 3


@pytest.mark.parametrize("chunk", [1, 2, 4, 6, 100])
def test_questions_on_a_document_stay_together(chunk: int) -> None:
    sampler = make(chunk=chunk)
    for number in range(5):
        order = epoch(sampler, number)
        runs = [
            document
            for place, (document, _) in enumerate(order)
            if place == 0 or order[place - 1][0] != document
        ]
        for document, count in enumerate(COUNTS):
            assert runs.count(document) <= -(-count // chunk), (document, order)
        longest = max(runs.count(document) for document in range(len(COUNTS)))
        assert longest > 1 or chunk > 4, "chunks of one document are spread over the epoch"


def test_whole_chunks_fill_batches_with_few_contexts() -> None:
    sampler = make([6] * 40, chunk=6)
    for start in range(0, 240, 24):
        assert len({document for document, _ in sampler.take(start, 24)}) == 4


@pytest.mark.parametrize("samples", [1, 2, 10, 33, 34])
def test_limit_is_exact_and_the_same_subset_in_both_stages(samples: int) -> None:
    first, second = make(samples=samples), make(samples=samples, stage="B", chunk=2)
    assert first.num_examples == second.num_examples == samples
    subset = set(epoch(first))
    assert len(subset) == samples
    assert subset == set(epoch(first, 3)) == set(epoch(second))
    assert subset <= set(EVERY)


def test_limit_draws_documents_by_the_seed() -> None:
    subsets = {frozenset(epoch(make([1] * 100, seed=seed, samples=20))) for seed in range(5)}
    assert len(subsets) == 5
    assert frozenset((document, 0) for document in range(20)) not in subsets


def test_limit_beyond_the_data_takes_all() -> None:
    sampler = make(samples=1000)
    assert sampler.num_examples == len(EVERY)
    assert sorted(epoch(sampler)) == EVERY


def test_larger_limit_contains_the_smaller() -> None:
    """A learning curve over ``data.samples`` compares subsets of each other."""
    assert set(epoch(make(samples=10))) < set(epoch(make(samples=20)))
