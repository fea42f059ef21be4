"""The teacher cache of a run: built once by all ranks, gone on with, and as good as the teacher."""

import errno
import json
import logging
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jobs
import pytest
from conftest import small_overrides

from latentwire import config_file
from latentwire import train as command
from latentwire.config import Config, ConfigError
from latentwire.data.batch import PromptBatch
from latentwire.data.example import Example
from latentwire.data.sampler import Sampler
from latentwire.decoders import teacher as teachers
from latentwire.decoders import teacher_shards
from latentwire.distributed.assembly import Job
from latentwire.testing import run_distributed
from latentwire.training import run, teacher_build, teaching
from latentwire.training.cache_error import CacheError
from latentwire.training.frozen_check import FrozenCheck
from latentwire.training.preflight import preflight
from latentwire.training.signals import StopRequest
from latentwire.training.teacher_build import build, cache_folder

STEPS = 3
WHOLE = ["teacher.cache=true", "teacher.top_k=0", "teacher.bits=32"]
PLAIN = ["diagnostics.grad_diag_interval=0", "sharding.backend=fsdp", "objectives.span=0"]


class Reads:
    """Counts the examples that decoders read as text teachers, and their readings."""

    def __init__(self) -> None:
        self.number = self.calls = 0

    def __enter__(self) -> "Reads":
        read = teachers.read_text

        def counted(decoder: Any, batch: PromptBatch, **options: Any) -> Any:
            self.number += len(batch.suffix_ids)
            self.calls += 1
            return read(decoder, batch, **options)

        self._patches = [
            patch.object(module, "read_text", counted) for module in (teaching, teacher_build)
        ]
        for each in self._patches:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._patches:
            each.stop()


class StopAfter(StopRequest):
    """A signal that comes after so many rounds."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self._left = rounds

    def agreed(self, world: Any) -> str:
        self._left -= 1
        if self._left <= 0:
            self._wanted = self._wanted or "preempted"
        return super().agreed(world)


def planned(config: Config) -> list[Example]:
    return jobs.make_stage(config).examples()


def built(job: Job, stop: StopRequest | None = None) -> tuple[int, str, int]:
    """Builds the caches; returns the examples that this rank has read, why it stopped, and how
    often it has read."""
    job.teachers.clear()
    with Reads() as reads:
        reason = build(
            job,
            planned(job.config),
            fingerprints=FrozenCheck(job).before,
            stop=stop or StopRequest(),
        )
    return reads.number, reason, reads.calls


def losses(job: Job) -> tuple[list[dict[str, float]], int]:
    """Every objective of a few steps of training, and the examples that teachers have read."""
    stage = jobs.make_stage(job.config)
    with Reads() as reads:
        curve = jobs.job_curve(job, [stage.plan(step) for step in range(1, STEPS + 1)])
    return [{k: v for k, v in row.items() if v is not None} for row in curve], reads.number


def alone(rank: int, world_size: int, overrides: list[str]) -> dict[str, Any]:
    """Stops, goes on, finds damage, and trains: what each attempt has read."""
    found: dict[str, Any] = {}
    config = config_file.load("smoke", overrides)
    found["live"] = losses(jobs.make_job(config, world_size))
    job = jobs.make_job(config_file.load("smoke", [*overrides, *WHOLE]), world_size)
    num_planned = len(planned(job.config))
    found["planned"] = num_planned
    found["stopped"] = built(job, StopAfter(1))
    found["known"] = {name: len(cache) for name, cache in job.teachers.items()}
    found["went on"] = built(job)
    found["again"] = built(job)
    # What cannot be read is not damaged, and not computed again either.
    caches = dict(job.teachers)
    with patch.object(teacher_build, "open_shard", side_effect=PermissionError(13, "Denied")):
        try:
            built(job)
        except CacheError as error:
            found["unreadable"] = str(error)
    found["aside then"] = [str(p) for c in caches.values() for p in c.folder.glob("*.damaged")]
    built(job)
    # One shard of each decoder is damaged; what the others hold is not computed again.
    held = {}
    for name, cache in job.teachers.items():
        shards = sorted(cache.folder.glob("shard-*"))
        shard = teacher_shards.open_shard(shards[0], cache.layout)
        held[name] = [len(shards), len(shard.prompts)]
        shards[0].write_bytes(shards[0].read_bytes()[:-5])
    found["held"] = held
    found["mended"] = built(job)
    found["aside"] = sum(
        len(list(cache.folder.glob("*.damaged"))) for cache in job.teachers.values()
    )
    found["cached"] = losses(job)
    found["live ones"] = [cache.num_live for cache in job.teachers.values()]
    # An example that no cache knows is read, in the same form.
    for cache in job.teachers.values():
        cache._examples.clear()
    stage = jobs.make_stage(job.config)
    with Reads() as reads:
        jobs.job_curve(job, [stage.plan(1)])
    found["unknown"] = [reads.number, [cache.num_live for cache in job.teachers.values()]]
    return found


def test_a_build_goes_on_where_it_was_and_training_reads_nothing(
    pair: Path, tmp_path: Path
) -> None:
    overrides = small_overrides(
        pair,
        tmp_path,
        *PLAIN,
        "placement=colocated",
        "data.samples=60",
        f"train.stage_a.steps={STEPS}",
        "objectives.kd_temperature=2",
    )
    (found,) = run_distributed(alone, 1, overrides)
    num_planned = found["planned"]
    assert num_planned == STEPS * 12
    number, reason, _ = found["stopped"]
    assert reason == "preempted" and 0 < number < num_planned
    assert found["known"] == {}, "a part is no cache to train with"
    assert found["went on"][:2] == [2 * num_planned - number, ""]
    assert found["again"] == [0, "", 0]
    assert "Denied" in found["unreadable"] and found["aside then"] == []
    assert found["held"]["llama"][0] > 1, "the attempt before has published what it had"
    assert found["mended"][:2] == [sum(num for _, num in found["held"].values()), ""]
    assert found["aside"] == 2
    (live, num_read), (cached, num_cached) = found["live"], found["cached"]
    assert (num_read, num_cached) == (2 * STEPS * 12, 0)
    assert found["live ones"] == [0, 0]
    for ours, theirs in zip(cached, live, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
        assert ours["llama/kd"] > 0 and ours["qwen/kd"] > 0
    assert found["unknown"] == [2 * 12, [12, 12]]


def together(
    rank: int, world_size: int, overrides: list[str], cases: dict[str, list[str]]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, more in cases.items():
        config = config_file.load("smoke", [*overrides, *more])
        live = losses(jobs.make_job(config, world_size))
        config = config_file.load("smoke", [*overrides, *more, *WHOLE])
        job = jobs.make_job(config, world_size)
        found[name] = [built(job), built(job), live, losses(job), len(planned(config))]
    # A rank whose disk is full ends the build of all.
    config = config_file.load("smoke", [*overrides, *WHOLE, "teacher.bits=16"])
    job = jobs.make_job(config, world_size)

    def full(*_: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with patch.object(teacher_build, "write_shard", full if rank == 1 else _only_written):
        try:
            built(job)
        except CacheError as error:
            found["full"] = [error.errno, str(error)]
    return found


def _only_written(*arguments: Any) -> str:
    return teacher_shards.write_shard(*arguments)


def test_ranks_build_together_and_lose_nothing_of_kd(pair: Path, tmp_path: Path) -> None:
    cases = {
        "separate": ["placement=separate"],
        "sharded": [
            "placement=colocated",
            "train.batch_size=10",
            "decoders.llama.shard=2",
            "decoders.qwen.shard=2",
        ],
    }
    overrides = small_overrides(
        pair, tmp_path, *PLAIN, "data.samples=25", f"train.stage_a.steps={STEPS}"
    )
    ranks = run_distributed(together, 2, overrides, cases)
    for name in cases:
        for found in ranks:
            first, second, (live, num_live), (cached, num_cached), num_planned = found[name]
            assert first[1] == second[1] == "" and second[0] == 0
            assert (num_live > 0, num_cached) == (True, 0)
            for ours, theirs in zip(cached, live, strict=True):
                assert ours == pytest.approx(theirs, rel=1e-4)
        reads = [found[name][0][0] for found in ranks]
        if name == "separate":
            assert reads == [num_planned] * 2, "each its own decoder"
        else:
            assert sum(reads) >= 2 * num_planned > max(reads), "each a part of both decoders"
            calls = {found[name][0][2] for found in ranks}
            assert len(calls) == 1 and calls.pop() > 2, "equally often"
    for found in ranks:
        assert found["full"][0] == errno.ENOSPC
        assert "teacher cache" in found["full"][1] and "No space" in found["full"][1]


def runs_on_rank(rank: int, world_size: int, attempts: list[list[str]]) -> list[Any]:
    found = []
    for number, overrides in enumerate(attempts):
        config = config_file.load("smoke", overrides)
        # A signal comes while the first one builds.
        request = StopRequest if number else lambda: StopAfter(1)
        with Reads() as reads, patch.object(run, "StopRequest", request):
            outcome = run.train(preflight(config, world_size=world_size))
        found.append([outcome.state, reads.number])
    return found


def test_a_resumed_run_and_the_next_one_read_no_text_as_teachers(
    pair: Path, tmp_path: Path
) -> None:
    overrides = small_overrides(
        pair,
        tmp_path,
        *PLAIN,
        "teacher.cache=true",
        "data.samples=12",
        "diagnostics.health_interval=0",
        "train.stage_b.steps=0",
        "decoders.qwen=null",
    )
    attempts = [
        [*overrides, "train.stage_a.steps=1"],
        [*overrides, "train.stage_a.steps=1"],
        [*overrides, "train.stage_a.steps=2"],
        [*overrides, "train.stage_a.steps=1", "run.tag=next"],
    ]
    (found,) = run_distributed(runs_on_rank, 1, attempts)
    assert found == [["preempted", 12], ["finished", 0], ["finished", 0], ["finished", 0]]
    log = (tmp_path / "runs" / "next" / "pipeline.log").read_text()
    assert "teacher cache of 'llama': 12 examples, 0 of them computed" in log
    folders = list((tmp_path / "checkpoints" / "teachers").iterdir())
    assert len(folders) == 1
    description = json.loads((folders[0] / "teacher.json").read_text())
    assert description["form"] == {"top_k": 64, "bits": 16, "temperature": 1.0}


def test_only_what_is_left_to_be_trained_on_is_planned() -> None:
    sampler = Sampler([3, 4, 5], seed=0, stage="A", questions_per_context=2)
    every = [(d, q) for d, count in enumerate([3, 4, 5]) for q in range(count)]
    assert sampler.among(0, 12) == sampler.among(7, 24) == sampler.among(5, 10**9) == every
    for start, count in ((0, 5), (10, 6), (3, 20), (4, 0)):
        assert sampler.among(start, count) == sorted(set(sampler.take(start, count)))


def test_a_folder_that_cannot_be_used_is_refused(pair: Path, tmp_path: Path) -> None:
    config = config_file.load("smoke", small_overrides(pair, tmp_path, "teacher.cache=true"))
    assert cache_folder(config) == tmp_path / "checkpoints" / "teachers"
    (tmp_path / "file").write_text("")
    overrides = small_overrides(
        pair, tmp_path, "teacher.cache=true", f"teacher.folder={tmp_path / 'file'}"
    )
    with pytest.raises(ConfigError, match=r"teacher\.folder: .* is a file"):
        preflight(config_file.load("smoke", overrides), world_size=1)
    overrides = small_overrides(pair, tmp_path, "teacher.cache=true", "run.tag=teachers")
    with pytest.raises(ConfigError, match=r"run\.tag: 'teachers' is taken"):
        preflight(config_file.load("smoke", overrides), world_size=1)


def test_examples_that_were_read_live_are_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Counted:
        num_live = 7

    class Teachers:
        teachers = {"llama": Counted()}

    monkeypatch.setattr(logging.getLogger("latentwire"), "propagate", True)
    words = "stage A: 7 times an example was not in the teacher cache"
    for is_said in (True, False):
        caplog.clear()
        teacher_build.warn_of_live(Teachers(), "stage A")  # type: ignore[arg-type]
        assert (words in caplog.text) == is_said


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full: "),
        (errno.EACCES, "when that is mended, the same command continues"),
    ],
)
def test_files_that_cannot_be_written_end_a_run_with_a_message(
    small_config: Config,
    tmp_path: Path,
    number: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> Any:
        raise CacheError(number, "the teacher cache: no")

    monkeypatch.setattr(logging.getLogger("latentwire"), "propagate", True)
    plan = preflight(small_config, world_size=1)
    assert command._recorded(plan, broken) == 1
    assert "the teacher cache: no" in caplog.text and words in caplog.text
    status = json.loads((plan.run_folder / "status.json").read_text())
    assert status["state"] == "failed" and "the teacher cache: no" in status["reason"]
