"""Steps laid out ahead: the same numbers, errors at their step, and no thread left."""

import threading
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from conftest import small_overrides

from latentwire import config_file
from latentwire.data.padding import Padding
from latentwire.testing import run_distributed
from latentwire.training.prefetch import Prefetcher
from latentwire.training.preparation import prepare


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_every_step_comes_in_its_turn(depth: int) -> None:
    with Prefetcher(lambda step: step * step, range(2, 9), depth=depth) as ahead:
        assert [ahead.next() for _ in range(2, 9)] == [step * step for step in range(2, 9)]
    assert threads() == []


@pytest.mark.parametrize("depth", [1, 2])
def test_no_more_is_made_ahead_than_asked_for(depth: int) -> None:
    made, is_made = [], threading.Semaphore(0)

    def make(step: int) -> int:
        made.append(step)
        is_made.release()
        return step

    with Prefetcher(make, range(100), depth=depth) as ahead:
        for number in range(5):
            assert ahead.next() == number
        for _ in range(5 + depth):
            assert is_made.acquire(timeout=10)
        assert not is_made.acquire(timeout=0.05)
        assert made == list(range(5 + depth))
    assert threads() == []


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_an_error_is_raised_at_its_own_step(depth: int) -> None:
    def make(step: int) -> int:
        if step == 3:
            raise RuntimeError("step three")
        return step

    with Prefetcher(make, range(1, 9), depth=depth) as ahead:
        assert [ahead.next(), ahead.next()] == [1, 2]
        with pytest.raises(RuntimeError, match="step three"):
            ahead.next()
    assert threads() == []


def test_no_thread_is_left_where_the_loop_fails() -> None:
    with pytest.raises(KeyError), Prefetcher(lambda step: step, range(9), depth=2) as ahead:
        ahead.next()
        raise KeyError
    assert threads() == []


class _Never:
    def agreed(self, world: Any) -> str:
        return ""


def trained_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, Any]:
    """What two stages leave, by ``data.prefetch``."""
    found: dict[str, Any] = {}
    for depth in (0, 2):
        config = config_file.load("smoke", [*overrides, f"data.prefetch={depth}"])
        job = jobs.make_job(config, world_size)
        trainer, rows = jobs.make_trainer(job), []

        def record(step: Any, rows: list[Any] = rows) -> None:
            # A draw of the loop's own would show a thread that draws too.
            rows.append([step.rows()[0]["tf"], float(torch.rand(())), step.padding.tree()])

        trainer._record = record
        for name in "AB":
            trainer.run(jobs.make_stage(config, name), done=0, stop=_Never())  # type: ignore[arg-type]
        digest = {key: float(value.double().sum()) for key, value in jobs.exported(job).items()}
        found[str(depth)] = [digest, rows, trainer.num_tokens, trainer.padding.tree()]
    return found | {"threads": threads()}


def test_a_run_is_bitwise_the_one_without_it(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(
        pair,
        tmp_path,
        "sharding.backend=fsdp",
        "train.stage_a.warmup_text_latent_prob=0.9",
        "train.accumulation=2",
        "objectives.ae=0.1",
        "adapter.dropout=0.1",
        "diagnostics.grad_diag_interval=0",
        "data.length_buckets=2",
        "data.questions_per_context=3",
    )
    (found,) = run_distributed(trained_on_rank, 1, overrides)
    assert found["0"] == found["2"]
    assert found["threads"] == []
    _, rows, _, padding = found["0"]
    assert len(rows) == 4
    total = sum((Padding.from_tree(row[2]) for row in rows[2:]), Padding())
    assert total == Padding.from_tree(padding), "of the last stage"
    assert 0 < total.shares()["encoder", "encoder"] < 1


def laid_out_on_rank(rank: int, world_size: int, overrides: list[str]) -> list[Any]:
    """Counts of a step in two and in four micro-batches."""
    config = config_file.load("smoke", overrides)
    job = jobs.make_job(config, world_size)
    step = jobs.make_stage(config).plan(1)
    found = []
    for parts in (1, 2):
        more = config_file.load("smoke", [*overrides, f"train.accumulation={parts}"])
        job.config = more
        prepared = prepare(job, step)
        found.append({name: dict(counts) for name, counts in prepared.counts.items()})
        assert len(prepared.micro_batches) == parts
        fields = prepared.padding.fields(list(job.decoders)[0])
        assert fields.keys() == {"padding_encoder", "padding_prefix", "padding_suffix"}
    return found


def test_counts_of_micro_batches_add_up(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(
        pair,
        tmp_path,
        "sharding.backend=fsdp",
        "objectives.ae=0.1",
        "objectives.continuation=0.1",
        "train.stage_a.warmup_text_latent_prob=1",
    )
    for whole, parts in run_distributed(laid_out_on_rank, 2, overrides):
        assert whole == parts
        ((_, counts),) = whole.items()
        assert {"tf", "ae", "continuation", "span"} <= counts.keys()
        assert counts["first"] == 12 and counts["ae"] > counts["tf"]


def tokens_on_rank(rank: int, world_size: int, overrides: list[str]) -> list[int]:
    """Tokens that the encoder reads in a step, at one ratio and at the sum of two."""
    found = []
    for more in ("train.stage_a.ratios=[5]", "train.stage_a.ratios=[5,10]"):
        config = config_file.load("smoke", [*overrides, "train.stage_a.ratio_mode=summed", more])
        prepared = prepare(jobs.make_job(config, world_size), jobs.make_stage(config).plan(1))
        found.append(sum(part.num_tokens for part in prepared.micro_batches))
    return found


def test_a_text_at_several_ratios_is_read_once(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(pair, tmp_path, "sharding.backend=fsdp")
    ((one, several),) = run_distributed(tokens_on_rank, 1, overrides)
    assert one == several > 0
