"""Validation while a stage trains: it chooses and ends, and changes nothing else."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import small_overrides
from jobs import BACKENDS, exported, load_job, make_job, make_stage, make_trainer, save_job, stored
from torch import Tensor

from latentwire import config_file
from latentwire.checkpointing.best import Standing
from latentwire.checkpointing.commit import newest, published
from latentwire.checkpointing.manifest import manifest_digest
from latentwire.checkpointing.state import Place
from latentwire.config import ConfigError
from latentwire.diagnostics.stream import DiagnosticsStream
from latentwire.distributed.assembly import Job
from latentwire.testing import run_distributed
from latentwire.train import main
from latentwire.training import run
from latentwire.training.held_out import draw_validation, num_shared_documents
from latentwire.training.preflight import preflight
from latentwire.training.validation import Validator, mean_score

STEPS = 3
VALIDATED = ["validation.interval=1", "validation.samples=7", "eval.batch_size=4"]
"""Two batches, the last of them filled up."""


def scores(em: float, nll: float | None) -> dict[str, Any]:
    return {"em": em, "f1": em / 2, "nll_per_token": nll}


@pytest.mark.parametrize(
    ("metric", "expected"), [("em", 0.5), ("f1", 0.25), ("nll", -2.0), ("nll of nan", None)]
)
def test_the_score_is_a_mean_over_decoders_and_larger_is_better(
    metric: str, expected: float | None
) -> None:
    nll = None if metric == "nll of nan" else 3.0
    decoders = {"a": scores(0.25, 1.0), "b": scores(0.75, nll)}
    assert mean_score(decoders, metric.split()[0]) == expected


def make_validator(job: Job, folder: Path) -> Validator:
    stream = DiagnosticsStream(
        folder / "validation.jsonl", run=job.config.run.tag, world=job.groups.world
    )
    return Validator(job, draw_validation(job.config), stream=stream, standing=Standing())


def read_rows(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        del row["time"]
    return rows


def train_on_rank(
    rank: int, world_size: int, overrides: list[str], folder: str
) -> dict[str, Tensor]:
    """Trained weights and moments, whole, after three steps with or without a validation each."""
    job = make_job(config_file.load("smoke", overrides), world_size)
    trainer, stage = make_trainer(job), make_stage(job.config)
    validator = make_validator(job, Path(folder))
    for step in range(1, STEPS + 1):
        trainer.step(stage.plan(step))
        random = torch.get_rng_state()
        validator.after_step("A", step, is_last=False)
        assert torch.equal(torch.get_rng_state(), random)
        assert job.wire.training
        if step == 1:
            place = Place(stage="A", step=1, samples=12, validation=validator.standing)
            save_job(job, Path(folder), 1, place=place)
    trained = {name: tensor.clone() for name, tensor in exported(job).items()}
    if job.config.validation.interval:
        load_job(job, newest(Path(folder)), with_optimizer=False)
        validator.after_step("A", STEPS + 1, is_last=False)
    return trained


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["fsdp", "zero2", "zero3_sharded"])
def test_a_validated_stage_trains_as_any_other_and_its_best_step_can_be_loaded(
    pair: Path, tmp_path: Path, backend: str
) -> None:
    overrides = small_overrides(pair, tmp_path, *BACKENDS[backend])
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    plain = run_distributed(train_on_rank, 2, overrides, str(tmp_path / "without"))
    validated = run_distributed(train_on_rank, 2, overrides + VALIDATED, str(tmp_path / "with"))
    for mine, expected in zip(validated, plain, strict=True):
        assert mine.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(mine[name], tensor), name
    rows = read_rows(tmp_path / "with" / "validation.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[3]["decoders"] == rows[0]["decoders"], "the first step again"
    assert rows[2]["decoders"] != rows[0]["decoders"]
    assert not (tmp_path / "without" / "validation.jsonl").exists()


def count_on_rank(rank: int, world_size: int, overrides: list[str], folder: str) -> dict[str, Any]:
    """What one validation calls of ``torch.distributed``, and what it concludes."""
    job = make_job(config_file.load("smoke", overrides), world_size)
    calls: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    for name in ("all_gather", "all_reduce", "barrier", "broadcast", "gather"):
        setattr(dist, name, counted(name, getattr(dist, name)))
    validator = make_validator(job, Path(folder))
    verdicts = [validator.after_step("A", step, is_last=step == 3) for step in range(1, 4)]
    return {"calls": calls, "is_best": [verdict.is_best for verdict in verdicts]}


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["separate", "colocated"])
def test_every_rank_does_and_concludes_the_same(pair: Path, tmp_path: Path, placement: str) -> None:
    overrides = small_overrides(pair, tmp_path, f"placement={placement}", *VALIDATED)
    more = [*overrides, "validation.interval=2", "validation.metric=nll"]
    first, second = run_distributed(count_on_rank, 2, more, str(tmp_path))
    assert first == second
    assert first["calls"]["broadcast"] > 0
    assert first["is_best"] == [False, True, False], "due at 2 and at the last; 3 equals 2"
    rows = read_rows(tmp_path / "validation.jsonl")
    assert [row["step"] for row in rows] == [2, 3]
    for row in rows:
        assert list(row["decoders"]) == ["llama", "qwen"]
        assert [found["num_examples"] for found in row["decoders"].values()] == [7, 7]
        nll = [found["nll_per_token"] for found in row["decoders"].values()]
        assert row["score"] == pytest.approx(-sum(nll) / 2)


def run_on_rank(rank: int, world_size: int, overrides: list[str]) -> str:
    config = config_file.load("smoke", overrides)
    return run.train(preflight(config, world_size=world_size)).state


def evaluate_on_rank(rank: int, world_size: int, overrides: list[str]) -> str:
    config = config_file.load("smoke", overrides)
    plan = preflight(config, world_size=world_size, evaluation=True)
    try:
        return run.evaluate_only(plan).state
    except ConfigError as error:
        return str(error)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_stages_end_early_the_best_step_is_evaluated_and_a_resume_does_the_same(
    pair: Path, tmp_path: Path
) -> None:
    # The random pair answers nothing right, so that no score beats the first one.
    overrides = small_overrides(
        pair,
        tmp_path,
        "train.stage_a.steps=6",
        "train.stage_b.steps=6",
        "validation.interval=1",
        "validation.patience=2",
        "validation.samples=12",
        "eval.split=validation",
        "diagnostics.log_interval=2",
        "diagnostics.grad_diag_interval=0",
    )
    folder, checkpoints = tmp_path / "runs" / "test", tmp_path / "checkpoints" / "test"
    metrics_file = folder / "metrics.json"
    assert run_distributed(run_on_rank, 2, overrides) == ["finished"] * 2
    logged = [(row["stage"], row["step"]) for row in read_rows(folder / "diagnostics.jsonl")]
    assert sorted(logged) == sorted([("A", 2), ("A", 3), ("B", 2), ("B", 3)] * 2), "the last too"
    rows = read_rows(folder / "validation.jsonl")
    places = [("A", 1), ("A", 2), ("A", 3), ("B", 1), ("B", 2), ("B", 3)]
    assert [(row["stage"], row["step"]) for row in rows] == places
    assert [row["is_best"] for row in rows] == [True] + [False] * 5
    steps = [(step.stage, step.number) for step in published(checkpoints)]
    assert steps == [("A", 1), ("A", 3), ("B", 3)]
    state = json.loads((checkpoints / "stageB" / "step-00000003" / "trainer.json").read_text())
    assert state["health"]["steps"] == {"A": 3, "B": 3}
    best = {"stage": "A", "step": 1, "score": 0.0, "metric": "em"}
    assert json.loads((checkpoints / "best.json").read_text()) == best
    metrics = metrics_file.read_text()
    first = manifest_digest(checkpoints / "stageA" / "step-00000001")
    evaluated = {"stage": "A", "step": 1, "manifest": first, "which": "best"}
    assert json.loads(metrics)["checkpoint"] == evaluated

    def latent_nll() -> list[float]:
        found = json.loads(metrics_file.read_text())["decoders"].values()
        return [decoder["arms"]["latent"]["nll_per_token"] for decoder in found]

    def validated_nll(row: dict[str, Any]) -> list[float]:
        return [found["nll_per_token"] for found in row["decoders"].values()]

    # Stage C reads the same examples here: it has the first validation's wire, not the last one's.
    assert latent_nll() == validated_nll(rows[0]) != validated_nll(rows[-1])
    weights = {step.name: stored(step.path) for step in published(checkpoints)}

    def run_again_after_the_loss_of(*lost: Path) -> None:
        for path in lost:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert run_distributed(run_on_rank, 2, overrides) == ["finished"] * 2
        assert read_rows(folder / "validation.jsonl") == rows
        assert metrics_file.read_text() == metrics
        assert json.loads((checkpoints / "best.json").read_text()) == best
        for place, expected in weights.items():
            again = stored(checkpoints / place)
            for name, tensor in expected.items():
                assert torch.equal(again[name], tensor), f"{place}: {name}"

    log = folder / "pipeline.log"
    stage_b, early = checkpoints / "stageB", checkpoints / "stageA" / "step-00000003"
    run_again_after_the_loss_of(stage_b, early, metrics_file)  # killed in the middle of Stage A
    assert "stage A: steps 2 to 6" in log.read_text()
    log.unlink()
    run_again_after_the_loss_of(stage_b, metrics_file)  # killed after Stage A had ended early
    assert "stage A: steps" not in log.read_text()
    assert "stage A ended early with step 3" in log.read_text()
    assert "stage B: steps 1 to 6" in log.read_text()
    log.unlink()
    run_again_after_the_loss_of(metrics_file)  # killed in Stage C
    assert "stage B: steps" not in log.read_text()
    written = metrics_file.stat().st_mtime_ns
    run_again_after_the_loss_of()
    assert "is finished; nothing to do" in log.read_text()
    assert metrics_file.stat().st_mtime_ns == written

    last = [*overrides, "eval.checkpoint=last"]
    assert run_distributed(evaluate_on_rank, 2, last) == ["finished"] * 2
    assert latent_nll() == validated_nll(rows[-1])
    checkpoint = json.loads(metrics_file.read_text())["checkpoint"]
    third = manifest_digest(checkpoints / "stageB" / "step-00000003")
    assert checkpoint == {"stage": "B", "step": 3, "manifest": third, "which": "last"}

    shard = next((checkpoints / "stageA" / "step-00000001" / "encoder").glob("shard-*"))
    whole = bytearray(shard.read_bytes())
    whole[-1] ^= 1
    shard.write_bytes(whole)
    refusals = run_distributed(evaluate_on_rank, 2, overrides)
    assert refusals[0] == refusals[1]
    assert "its bytes have changed" in refusals[0] and "eval.checkpoint=last" in refusals[0]

    shutil.rmtree(checkpoints / "stageA" / "step-00000001")
    (refused, _) = run_distributed(evaluate_on_rank, 2, overrides)
    assert refused == (
        "eval.checkpoint: best, but stage A step 1 is gone; use eval.checkpoint=last"
    )


def test_a_dry_run_says_what_is_validated_and_what_cannot_be(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = small_overrides(pair, tmp_path, "validation.interval=50")
    assert main(["--dry-run", *overrides, "validation.patience=3"]) == 0
    shown = capsys.readouterr().out
    assert "every 50 steps and after a stage's last, 96 examples" in shown
    assert "best by em; a stage ends after 3 without a new best" in shown

    assert main(["--dry-run", *overrides, "validation.samples=1", "eval.samples=2"]) == 2
    refused = capsys.readouterr().err
    assert "validation.samples: 1 draws only one document of the validation split" in refused
    assert "eval.samples: 2 draws only one document of the test split" in refused


def test_a_split_of_one_document_is_refused_as_such(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.jsonl"
    rows = [{"context": f"Text {n}.", "question": "Which?", "answers": [str(n)]} for n in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ("data.source=jsonl", f"data.path={path}", "data.samples=0")
    assert main(["--dry-run", *small_overrides(pair, tmp_path, *own)]) == 2
    refused = capsys.readouterr().err
    assert f"data.path: the test split of {path} has only 1 document" in refused
    assert "give more articles" in refused


def test_patience_without_validation_is_refused(recipe: str) -> None:
    with pytest.raises(ConfigError, match=r"validation\.patience: 2, but validation\.interval"):
        config_file.load(recipe, ["validation.patience=2"])


def test_documents_that_are_chosen_on_and_evaluated_are_counted(pair: Path, tmp_path: Path) -> None:
    config = config_file.load("smoke", small_overrides(pair, tmp_path, "validation.interval=1"))
    validated = draw_validation(config)
    assert num_shared_documents(validated, validated[:6]) == len(
        {example.context for example in validated[:6]}
    )
    assert num_shared_documents(validated, []) == 0
