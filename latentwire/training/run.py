"""A run from its first process group to its result table: Stages A and B, then C."""

import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from typing import Any

from latentwire import config_file
from latentwire.checkpointing import state
from latentwire.checkpointing.commit import STAGES, Step, newest
from latentwire.config import ConfigError
from latentwire.data.example import Example
from latentwire.diagnostics.stream import DiagnosticsStream
from latentwire.distributed import groups as process_groups
from latentwire.distributed.assembly import Job, assemble
from latentwire.distributed.groups import ProcessGroups
from latentwire.distributed.messages import barrier, broadcast_json
from latentwire.evaluation.runner import Interrupted
from latentwire.training.preflight import Plan
from latentwire.training.records import StepRecord
from latentwire.training.run_folder import PROGRESS, log_to, prepare
from latentwire.training.signals import StopRequest
from latentwire.training.stage_c import (
    draw_held_out,
    evaluate_into_folder,
    open_source_for,
    print_result,
    warn_of_cuts,
)
from latentwire.training.stages import Stage
from latentwire.training.status import FILES, write_status
from latentwire.training.trainer import Trainer

log = logging.getLogger(__name__)
progress = logging.getLogger(PROGRESS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    state: str
    """finished, preempted or stopped."""
    code: int


def train(plan: Plan, *, wipe: bool = False) -> Outcome:
    """Runs or resumes all stages. Every rank of the world calls it."""
    config = plan.config
    device = process_groups.pick_device()
    process_groups.start(device, timeout=config.distributed.timeout)
    groups = ProcessGroups(plan.topology, device=device, timeout=config.distributed.timeout)
    with StopRequest() as stop:
        resume = _open_folder(plan, groups, wipe=wipe)
        stages = [Stage(config, name, open_source_for(plan, "train")) for name in STAGES]
        if _finished(plan, stages, resume):
            return _show_finished(plan, groups)
        examples = draw_held_out(plan)
        job = assemble(config, groups)
        _report_units(job)
        place = _restore(resume, job)
        stream = DiagnosticsStream(plan.diagnostics, run=config.run.tag, world=groups.world)
        stream.forget_after(*((place.stage, place.step) if place else ("A", 0)))
        reason = _train_stages(plan, job, stages, place, stream, stop)
        if reason:
            return _stopped(plan, groups, reason)
        step = _agreed_newest(plan, groups)
        return _evaluate(plan, job, examples, step, stop)


def evaluate_only(plan: Plan) -> Outcome:
    """Runs Stage C on the newest checkpoint of an existing run. Every rank calls it."""
    config = plan.config
    device = process_groups.pick_device()
    process_groups.start(device, timeout=config.distributed.timeout)
    groups = ProcessGroups(plan.topology, device=device, timeout=config.distributed.timeout)
    log_to(plan.run_folder / FILES["log"], rank=groups.rank)
    step = _agreed_newest(plan, groups)
    if step is None:
        raise ConfigError(
            [f"run.tag: '{config.run.tag}' has no checkpoint in {plan.checkpoint_folder}; train it"]
        )
    examples = draw_held_out(plan)
    job = assemble(config, groups)
    state.restore(step, job.units, with_optimizer=False)
    log.info("loaded %s", step.path)
    with StopRequest() as stop:
        return _evaluate(plan, job, examples, step, stop)


def _evaluate(
    plan: Plan, job: Job, examples: Sequence[Example], step: Step | None, stop: StopRequest
) -> Outcome:
    try:
        evaluate_into_folder(plan, job, examples, step=step, stop=stop)
    except Interrupted as request:
        return _stopped(plan, job.groups, request.reason)
    return Outcome(state="finished", code=0)


def _open_folder(plan: Plan, groups: ProcessGroups, *, wipe: bool) -> Step | None:
    """Prepares the run's folder and agrees on the checkpoint to resume from."""
    if groups.rank == 0:
        prepare(plan, wipe=wipe)
        write_status(plan.run_folder, state="running", diagnostics=plan.diagnostics)
    barrier(groups.world)  # the folder exists before anyone logs or looks into it
    log_to(plan.run_folder / FILES["log"], rank=groups.rank)
    log.info("run '%s' in %s", plan.config.run.tag, plan.run_folder)
    log.info("%s", plan.topology.table())
    return _agreed_newest(plan, groups)


def _agreed_newest(plan: Plan, groups: ProcessGroups) -> Step | None:
    # Rank 0 decides: on a network file system another rank may see another listing.
    step = newest(plan.checkpoint_folder) if groups.rank == 0 else None
    found = broadcast_json(None if step is None else [step.stage, step.number], groups.world)
    if found is None:
        return None
    stage, number = found
    path = plan.checkpoint_folder / f"stage{stage}" / f"step-{number:08d}"
    return Step(path=path, stage=stage, number=number)


def _finished(plan: Plan, stages: Sequence[Stage], newest_step: Step | None) -> bool:
    """Whether metrics exist for the last step that this command would train."""
    try:
        metrics = json.loads((plan.run_folder / FILES["metrics"]).read_text(encoding="utf-8"))
        evaluated = metrics["checkpoint"]
    except (OSError, ValueError, KeyError):
        return False
    last = [stage for stage in stages if stage.num_steps]
    wanted = (last[-1].name, last[-1].num_steps) if last else None
    there = (newest_step.stage, newest_step.number) if newest_step else None
    at = (evaluated["stage"], evaluated["step"])
    return at == there and (wanted is None or at == wanted)


def _show_finished(plan: Plan, groups: ProcessGroups) -> Outcome:
    if groups.rank == 0:
        metrics = json.loads((plan.run_folder / FILES["metrics"]).read_text(encoding="utf-8"))
        log.info("run '%s' is finished; nothing to do", plan.config.run.tag)
        print_result(plan, metrics)
        write_status(plan.run_folder, state="finished", code=0)
    return Outcome(state="finished", code=0)


def _report_units(job: Job) -> None:
    for name, unit in job.units.items():
        log.info("unit %s: %d trained parameters", name, unit.num_parameters)


def _report_state(job: Job) -> None:
    sizes = {name: unit.state_bytes() / 2**20 for name, unit in job.units.items()}
    parts = ", ".join(f"{name} {size:.1f} MiB" for name, size in sizes.items())
    log.info("optimizer state on this rank (fp32 weights, both moments): %s", parts)


def _restore(step: Step | None, job: Job) -> state.Place | None:
    if step is None:
        return None
    place = state.restore(step, job.units)
    log.info("resumed from %s", step.path)
    return place


def _train_stages(
    plan: Plan,
    job: Job,
    stages: Sequence[Stage],
    place: state.Place | None,
    stream: DiagnosticsStream,
    stop: StopRequest,
) -> str:
    """Trains what is left; returns why it ended early, or an empty string."""
    config, world = plan.config, job.groups.world
    tree = config_file.to_tree(config)

    def save(stage: str, step: int) -> None:
        at = state.Place(
            stage=stage,
            step=step,
            samples=step * config.train.stage_batch_size(stage),
            num_skipped=trainer.guard.num_skipped,
        )
        if state.save(plan.checkpoint_folder, at, job.units, tree, world=world):
            log.info("stage %s: saved step %d", stage, step)

    def record(step: StepRecord) -> None:
        if not step.is_logged:
            return
        rows = stream.write(step.rows())
        if rows is not None:
            step.progress = _progress(rows)
            progress.info(
                "stage %s step %d: %s",
                step.stage,
                step.step,
                ", ".join(f"{key} {value}" for key, value in step.progress.items()),
            )
            write_status(plan.run_folder, state="running", stage=step.stage, step=step.step)

    num_skipped = place.num_skipped if place else 0
    trainer = Trainer(job, record=record, save=save, num_skipped=num_skipped)
    for stage in stages:
        done = _steps_done(stage.name, place)
        if done >= stage.num_steps:
            continue
        log.info("stage %s: steps %d to %d", stage.name, done + 1, stage.num_steps)
        start = time.perf_counter()
        reason = trainer.run(stage, done=done, stop=stop)
        log.info("stage %s: %.0f s", stage.name, time.perf_counter() - start)
        if trainer.guard.num_skipped:
            log.warning("skipped steps so far: %d", trainer.guard.num_skipped)
        _report_state(job)
        warn_of_cuts(job, f"stage {stage.name}")
        if reason:
            return reason
    return ""


def _steps_done(stage: str, place: state.Place | None) -> int:
    if place is None or STAGES.index(stage) > STAGES.index(place.stage):
        return 0
    # A run that reached Stage B has left Stage A behind, whatever A's length says now.
    return place.step if stage == place.stage else 1 << 62


def _progress(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    first = {row["decoder"]: row for row in reversed(rows)}
    values = {f"tf/{name}": _number(row["tf"], 3) for name, row in sorted(first.items())}
    values |= {f"acc/{name}": _number(row["first_acc"], 2) for name, row in sorted(first.items())}
    seconds = max(row["sec_per_step"] for row in rows)
    return values | {"ex/s": f"{rows[0]['num_examples'] / seconds:.0f}"}


def _number(value: float | None, digits: int) -> str:
    # A row holds null for what is not finite.
    return "not finite" if value is None else f"{value:.{digits}f}"


def _stopped(plan: Plan, groups: ProcessGroups, reason: str) -> Outcome:
    code = 0 if reason == "preempted" else 1
    if groups.rank == 0:
        log.info("%s: the trained steps are saved; the same command continues", reason)
        write_status(plan.run_folder, state=reason, code=code, reason="asked by a signal")
    barrier(groups.world)
    return Outcome(state=reason, code=code)
