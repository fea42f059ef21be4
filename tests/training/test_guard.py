"""A step that is not finite changes nothing, on any backend, and says whose fault it was."""

import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from conftest import small_overrides
from launching import python, status
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from latentwire import config_file
from latentwire.checkpointing.commit import newest
from latentwire.config import Config
from latentwire.distributed.assembly import Job
from latentwire.testing import run_distributed
from latentwire.training import guard as guard_module
from latentwire.training import trainer as trainer_module
from latentwire.training.objectives import Measured
from latentwire.training.preparation import prepare
from latentwire.wire.unit import Injection

POISONED_STEP = 2
NUM_STEPS = 4


class _BadGradient(torch.autograd.Function):
    """Passes a value on; its gradient is infinite."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * float("inf")


def bad_loss(value: Tensor) -> Tensor:
    return value * float("nan")


def bad_gradient(value: Tensor) -> Tensor:
    poisoned: Tensor = _BadGradient.apply(value)
    return poisoned


POISONS = {"loss": (bad_loss, "first"), "gradient": (bad_gradient, "tf")}
"""What is done to which objective."""


@contextmanager
def poisoned(poison: str, *, first_only: bool = True) -> Iterator[None]:
    """One objective of this rank's first micro-batch, or of all, is not finite, however often it
    is measured."""
    real = trainer_module.measure
    change, objective = POISONS[poison]
    first: list[Any] = []

    def measure(job: Job, name: str, batch: Any, *args: Any, **options: Any) -> Measured:
        measured = real(job, name, batch, *args, **options)
        first.append(batch.examples)
        if batch.examples == first[0] or not first_only:
            measured.sums[objective] = change(measured.sums[objective])
        return measured

    modules = (trainer_module, guard_module)
    for module in modules:
        module.measure = measure  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in modules:
            module.measure = real  # type: ignore[attr-defined]


def train_steps(
    job: Job, stage: str, numbers: list[int], poison: str = ""
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Trains the numbered steps; returns this rank's part of the final state, and its rows."""
    trainer = jobs.make_trainer(job)
    plans = jobs.make_stage(job.config, stage)
    rows = []
    for number in numbers:
        if poison and number == POISONED_STEP and job.groups.rank == 1:
            with poisoned(poison):
                record = trainer.step(plans.plan(number))
        else:
            record = trainer.step(plans.plan(number))
        rows += record.rows()
        reason = trainer.guard.reason
    return jobs.exported(job), [row | {"reason": reason} for row in rows]


def with_and_without_on_rank(
    rank: int, world_size: int, overrides: list[str], poison: str, backends: list[str], stages: str
) -> list[dict[str, Any]]:
    """Differences between a run with a poisoned step and one that never saw it."""
    found = []
    for backend in backends:
        more = (jobs.BACKENDS | jobs.BF16_BACKENDS)[backend]
        for stage in stages:
            config = config_file.load("smoke", [*overrides, *more])
            every = list(range(1, NUM_STEPS + 1))
            without = [number for number in every if number != POISONED_STEP]
            expected, _ = train_steps(jobs.make_job(config, world_size), stage, without)
            state, rows = train_steps(jobs.make_job(config, world_size), stage, every, poison)
            assert state.keys() == expected.keys()
            found.append(
                {
                    "backend": backend,
                    "differing": [k for k in state if not torch.equal(state[k], expected[k])],
                    "num_tensors": len(state),
                    "rows": rows,
                }
            )
    return found


@pytest.mark.parametrize(
    ("poison", "backends", "stages"),
    [
        ("loss", list(jobs.BACKENDS), "A"),
        ("loss", list(jobs.BF16_BACKENDS), "A"),
        ("gradient", list(jobs.BACKENDS), "B"),
    ],
)
def test_a_poisoned_step_changes_nothing(
    poison: str, backends: list[str], stages: str, pair: Path, tmp_path: Path
) -> None:
    overrides = small_overrides(
        pair,
        tmp_path,
        "placement=separate",
        "train.accumulation=2",
        f"train.stage_a.steps={NUM_STEPS}",
        f"train.stage_b.steps={NUM_STEPS}",
        "train.stage_a.warmup_text_latent_prob=0.5",
        "diagnostics.grad_diag_interval=0",
    )
    ranks = run_distributed(with_and_without_on_rank, 2, overrides, poison, backends, stages)
    objective = POISONS[poison][1]
    what = {"loss": f"loss {objective}", "gradient": f"gradient of {objective}"}[poison]
    for rank, results in enumerate(ranks):
        assert len(results) == len(stages) * len(backends)
        for result in results:
            assert result["differing"] == [], result["backend"]
            assert result["num_tensors"] > 30 or rank == 1, "rank 0 holds the encoder's state"
            skipped = [row["step"] for row in result["rows"] if row["skipped"]]
            assert skipped == [POISONED_STEP]
            assert {row["reason"] for row in result["rows"]} == {f"{what} of 'qwen' on rank 1"}


def late_on_rank(
    rank: int, world_size: int, overrides: list[str], poison: str
) -> list[dict[str, Any]]:
    """What a poisoned step between log steps comes to, of which the host hears a step later."""
    config = config_file.load("smoke", overrides)
    states, rows = [], []
    for steps in ([1, 3, 4], [1, 2, 3, 4]):
        job = jobs.make_job(config, world_size)
        trainer, plans = jobs.make_trainer(job), jobs.make_stage(config)
        trainer._record = lambda record: rows.extend(record.rows())
        for number in steps:
            if number == POISONED_STEP and rank == 1:
                # Until the next step has asked.
                with poisoned(poison):
                    trainer.step(plans.plan(number))
                    assert trainer.guard.num_skipped == 0
                    trainer.step(plans.plan(number + 1))
            elif number != POISONED_STEP + 1 or rank == 0 or len(steps) == 3:
                trainer.step(plans.plan(number))
        trainer.settle()
        states.append(jobs.exported(job))
    expected, state = states
    return [
        {
            "differing": [key for key in state if not torch.equal(state[key], expected[key])],
            "num_tensors": len(state),
            "num_skipped": trainer.guard.num_skipped,
            "rows": [[row["step"], row["skipped"], row["skip_reason"]] for row in rows],
        }
    ]


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_poisoned_step_between_log_steps_changes_nothing(
    poison: str, pair: Path, tmp_path: Path
) -> None:
    overrides = small_overrides(
        pair,
        tmp_path,
        "placement=separate",
        "sharding.backend=fsdp",
        "train.stage_a.steps=9",
        "diagnostics.grad_diag_interval=0",
        "diagnostics.log_interval=100",
        "diagnostics.health_interval=0",
    )
    objective = POISONS[poison][1]
    what = {"loss": f"loss {objective}", "gradient": f"gradient of {objective}"}[poison]
    for (result,) in run_distributed(late_on_rank, 2, overrides, poison):
        assert result["differing"] == []
        assert result["num_tensors"] > 30 and result["num_skipped"] == 1
        assert result["rows"] == [[POISONED_STEP, True, f"{what} of 'qwen' on rank 1"]]


class _Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func)
        if any(word in name for word in ("_local_scalar_dense", "nonzero", "bincount", "unique")):
            self.found.append("".join(traceback.format_stack()[-6:-1]))
        return func(*args, **(kwargs or {}))


def waits_on_rank(rank: int, world_size: int, overrides: list[str]) -> list[Any]:
    config = config_file.load("smoke", overrides)
    job = jobs.make_job(config, world_size)
    trainer, plans = jobs.make_trainer(job), jobs.make_stage(config)
    counts = []
    for number in (1, 2, 3, 4):
        prepared = prepare(job, plans.plan(number))
        with _Waits() as waits:
            trainer.step(prepared.plan, prepared)
        counts.append(len(waits.found))
        assert number == 4 or not waits.found, waits.found[0]
    return counts


def test_no_step_between_log_steps_waits_for_the_device(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(
        pair,
        tmp_path,
        "sharding.backend=fsdp",
        "objectives.ae=0.1",
        "objectives.state=0.1",
        "objectives.latent_align=0.1",
        "train.stage_a.steps=9",
        "data.questions_per_context=3",
        "diagnostics.grad_diag_interval=0",
        "diagnostics.log_interval=100",
        "diagnostics.health_interval=4",
    )
    (counts,) = run_distributed(waits_on_rank, 1, overrides)
    assert counts[:3] == [0, 0, 0]
    assert counts[3] > 0, "what is counted is there to be counted"


def raises_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, Any]:
    """Steps that are all poisoned, until the guard has had enough."""
    config = config_file.load("smoke", overrides)
    job = jobs.make_job(config, world_size)
    saved: list[int] = []
    trainer = trainer_module.Trainer(
        job,
        record=lambda record: None,
        save=lambda stage, step: saved.append(step),
        num_skipped=7,
    )
    with poisoned("loss", first_only=False), pytest.raises(guard_module.NonFiniteError) as caught:
        trainer.run(jobs.make_stage(config), done=0, stop=_Never())  # type: ignore[arg-type]
    return {
        "saved": saved,
        "message": str(caught.value),
        "skipped": trainer.guard.num_skipped,
        "inside": reason_inside(config, world_size),
    }


def reason_inside(config: Config, world_size: int) -> str:
    """The reason given where every objective's gradient is fine down to the soft prompt."""
    job = jobs.make_job(config, world_size)
    real = job.inject

    def inject(name: str, *arguments: Any, **options: Any) -> Injection:
        wire = real(name, *arguments, **options)
        if wire.vectors.requires_grad and name == "qwen":
            wire.vectors.register_hook(lambda grad: grad * float("inf"))
        return wire

    job.inject = inject  # type: ignore[method-assign]
    trainer = jobs.make_trainer(job)
    trainer.step(jobs.make_stage(config).plan(1))
    return trainer.guard.reason


class _Never:
    def agreed(self, world: Any) -> str:
        return ""


def test_too_many_in_a_row_end_the_run_and_save_it(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(
        pair, tmp_path, "train.max_skipped=1", "train.stage_a.steps=9", "sharding.backend=fsdp"
    )
    (result,) = run_distributed(raises_on_rank, 1, overrides)
    assert result["saved"] == [2]
    assert result["skipped"] == 9, "those before the resume count too"
    assert result["message"].startswith("2 steps in a row were not finite (train.max_skipped is 1)")
    assert "loss first of 'llama' on rank 0" in result["message"]
    assert result["inside"] == "gradient inside encoder; gradient inside adapter_qwen"


def test_a_learning_rate_far_too_high_ends_with_a_message(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(
        pair,
        tmp_path,
        "optim.encoder_lr=1e30",
        "optim.adapter_lr=1e30",
        "train.stage_a.steps=9",
        "train.stage_a.warmup_steps=0",
        "train.max_skipped=2",
    )
    result = python("-m", "latentwire.train", "--recipe", "smoke", *overrides, nproc=2)
    assert result.returncode == 1
    assert "3 steps in a row were not finite (train.max_skipped is 2)" in result.stderr
    assert "Traceback (most recent call last):\n  File" not in result.stderr.split("ended:")[0]
    found = status(tmp_path)
    assert (found["state"], found["code"]) == ("failed", 1)
    assert "not finite" in found["reason"]
    step = newest(tmp_path / "checkpoints" / "test")
    assert step is not None
    assert json.loads((step.path / "trainer.json").read_text())["num_skipped"] == 3
    lines = (tmp_path / "runs" / "test" / "diagnostics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=_no_constant) for line in lines]
    assert [row["step"] for row in rows if row["skipped"]] == [2, 2, 3, 3, 4, 4]
    assert all("tf" in row["nonfinite"] for row in rows if row["skipped"])
    assert all("on rank " in row["skip_reason"] for row in rows if row["skipped"])
    assert not any("skip_reason" in row for row in rows if not row["skipped"])


def _no_constant(name: str) -> Callable[..., Any]:
    raise AssertionError(f"{name} is no JSON")
