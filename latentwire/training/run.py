"""A run from its first process group to its result table: Stages A and B, then C."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from latentwire import config_file
from latentwire.checkpointing import state
from latentwire.checkpointing.commit import STAGES, Step
from latentwire.checkpointing.manifest import read_manifest
from latentwire.checkpointing.state import Place
from latentwire.checkpointing.writer import CheckpointWriter
from latentwire.config import ConfigError
from latentwire.data.articles import SourceError
from latentwire.data.example import Example
from latentwire.decoders.identity import identity_problems
from latentwire.diagnostics.rank_stream import RankStream
from latentwire.diagnostics.sinks import Feed, open_sinks
from latentwire.diagnostics.stream import DiagnosticsStream
from latentwire.distributed.assembly import Job, assemble
from latentwire.distributed.groups import ProcessGroups
from latentwire.distributed.messages import barrier
from latentwire.evaluation.runner import Interrupted
from latentwire.objectives.balance import Balance
from latentwire.training import resume, teacher_build, token_build
from latentwire.training.attempts import launch
from latentwire.training.cuts import warn_of_cuts, warn_of_long
from latentwire.training.data_files import check_data, record_data
from latentwire.training.doctor import Doctor
from latentwire.training.frozen_check import FrozenCheck
from latentwire.training.guard import NonFiniteError
from latentwire.training.held_out import (
    draw_evaluation,
    draw_health,
    draw_validation,
)
from latentwire.training.identity import identities
from latentwire.training.joining import joined
from latentwire.training.outcome import Outcome, stopped
from latentwire.training.preflight import Plan, recorded_config
from latentwire.training.prompt_checks import sample_documents
from latentwire.training.reporting import Reporter
from latentwire.training.resume import Checkpoint
from latentwire.training.run_folder import log_to, prepare, record
from latentwire.training.saving import open_writer, place_at, unit_groups
from latentwire.training.signals import StopRequest
from latentwire.training.stage_c import evaluate_into_folder, open_source_for, print_result
from latentwire.training.stages import Stage
from latentwire.training.start import agreed_problems, agreed_start
from latentwire.training.status import FILES, write_status
from latentwire.training.telling import (
    report_early_end,
    report_padding,
    report_state,
    report_units,
    tell_of_other_settings,
    warn_of_shared,
)
from latentwire.training.trainer import Trainer
from latentwire.training.validation import Validator

log = logging.getLogger(__name__)

_LEFT = "it was evaluated at {}, before its training is over; the same command goes on with that"


def train(plan: Plan, *, wipe: bool = False, resume_from: str | None = None) -> Outcome:
    """Runs or resumes all stages. Every rank of the world calls it.

    Args:
        wipe: an existing run is deleted first.
        resume_from: the step to go on from, in place of the newest.
    """
    config = plan.config
    with joined(plan) as groups, StopRequest() as stop:
        _open_folder(plan, groups, wipe=wipe)
        found = agreed_start(plan.checkpoint_folder, groups.world, wanted=resume_from)
        if groups.rank == 0:
            # A restart of this command deletes nothing any more, and does not go back again.
            write_status(plan.run_folder, state="running", begun_by=launch())
        step, place = found or (None, None)
        check_data(plan, groups.world, trained=config)
        standing = resume.agreed_standing(plan, groups, place)
        stages = [Stage(config, name, open_source_for(plan, "train")) for name in STAGES]
        report_early_end(plan, stages, place)
        checkpoint = resume.chosen(plan, step, standing.best)
        if resume.agreed_finished(plan, groups, stages, place, checkpoint):
            _record(plan, groups)
            return _show_finished(plan, groups)
        validated, examples = draw_validation(config), draw_evaluation(config)
        if groups.rank == 0:
            warn_of_shared(validated, examples)
        job = assemble(config, groups)
        frozen = FrozenCheck(job)
        decoders = identities(job, frozen.before)
        report_units(job)
        warn_of_long(job, sample_documents(config))
        if step is not None:
            _check_decoders(step, decoders)
            state.restore(step, job.units, unit_groups(job))
            state.restore_generators(step, rank=groups.rank, world_size=groups.world.size)
            log.info("resumed from %s", step.path)
        _record(plan, groups)  # not before: a start that is refused leaves the run what it was
        if reason := _fill_caches(plan, job, stages, place, frozen, stop):
            return stopped(plan, groups, reason, why=stop.reason)
        validation = _open_stream(plan, groups, plan.run_folder / FILES["validation"], place)
        validator = Validator(job, validated, stream=validation, standing=standing)
        with open_writer(plan, job, stop, decoders=decoders) as writer:
            try:
                reason = _train_stages(plan, job, stages, place, validator, stop, writer)
            except NonFiniteError:
                # Every rank is there and raises it; the last step is to be whole.
                writer.wait()
                raise
        if reason:
            return stopped(plan, groups, reason, why=stop.reason)
        # Each rank reads its own weights and files.
        groups.expect_waits()
        frozen.verify()
        checkpoint = _load_chosen(plan, job, validator, is_saved=writer.is_saved)
        return _evaluate(plan, job, frozen, examples, checkpoint, stop)


def evaluate_only(plan: Plan) -> Outcome:
    """Runs Stage C on a checkpoint of an existing run. Every rank calls it."""
    config = plan.config
    with joined(plan) as groups, StopRequest() as stop:
        log_to(plan.run_folder / FILES["log"], rank=groups.rank)
        found = agreed_start(plan.checkpoint_folder, groups.world, mends=False)
        if found is None:
            tag, folder = config.run.tag, plan.checkpoint_folder
            raise ConfigError([f"run.tag: '{tag}' has no checkpoint in {folder}; train it"])
        step, place = found
        before = recorded_config(plan.run_folder, plan.checkpoint_folder)
        check_data(plan, groups.world, trained=before or config)
        if groups.rank == 0:
            tell_of_other_settings(plan)
        examples = draw_evaluation(config)
        if groups.rank == 0:
            warn_of_shared(_validated_by_run(plan), examples)
        checkpoint = resume.agreed_chosen(plan, groups, step, place.validation.best)
        job = assemble(config, groups)
        frozen = FrozenCheck(job)
        if checkpoint.step is not None:
            _check_decoders(checkpoint.step, identities(job, frozen.before))
        _load(checkpoint, job)
        left = "" if resume.is_trained(plan, place) else _LEFT.format(step.name)
        return _evaluate(plan, job, frozen, examples, checkpoint, stop, left=left)


def _validated_by_run(plan: Plan) -> list[Example]:
    """What the run's best checkpoint was chosen on; nothing where that is not to be had here."""
    before = recorded_config(plan.run_folder, plan.checkpoint_folder)
    try:
        return [] if before is None else draw_validation(before)
    except (SourceError, ConfigError):
        return []


def _fill_caches(
    plan: Plan,
    job: Job,
    stages: Sequence[Stage],
    place: Place | None,
    frozen: FrozenCheck,
    stop: StopRequest,
) -> str:
    """Those that are wanted; returns why the run stops, or an empty string. All must call."""
    config = plan.config
    has_teachers = config.teacher.cache and config.objectives.kd > 0
    if config.teacher.cache and not has_teachers:
        log.info("no teacher cache is built, as objectives.kd is 0")
    if not (has_teachers or config.data.token_cache):
        return ""
    if config.data.token_cache:
        # Of all steps, made or not, so that a run that goes on finds the same file.
        token_build.build(job, [example for stage in stages for example in stage.examples()])
    if not has_teachers:
        return ""
    examples = []
    for stage in stages:
        done = resume.steps_done(plan, stage.name, place)
        examples += stage.examples(done=done)
    return teacher_build.build(job, examples, fingerprints=frozen.before, stop=stop)


def _load_chosen(plan: Plan, job: Job, validator: Validator, *, is_saved: bool) -> Checkpoint:
    """Puts the checkpoint that is evaluated into the units, unless they hold it already.

    Args:
        is_saved: the units are as they were last saved.
    """
    found = resume.agreed_newest(plan, job.groups)
    last = found[0] if found else None
    best_one = resume.agreed_best(plan, job.groups, validator.standing.best)
    checkpoint = resume.chosen(plan, last, best_one)
    if checkpoint.step is None and not is_saved:
        return Checkpoint(step=None, which="unsaved")
    if checkpoint.step is not None and (checkpoint.step != last or not is_saved):
        _load(checkpoint, job)
    return checkpoint


def _load(checkpoint: Checkpoint, job: Job) -> None:
    """Puts a checkpoint into the units. All must call.

    Raises:
        ConfigError: it is damaged.
    """
    assert checkpoint.step is not None
    # The newest step was read where the run began; the best one may be another.
    if problems := agreed_problems(checkpoint.step, job.groups.world):
        mend = "; use eval.checkpoint=last" if checkpoint.which == "best" else ""
        raise ConfigError([f"{problem}{mend}" for problem in problems])
    state.restore(checkpoint.step, job.units, unit_groups(job), with_optimizer=False)
    log.info("loaded %s", checkpoint.step.path)


def _check_decoders(step: Step, now: Mapping[str, Any]) -> None:
    before = read_manifest(step.path).decoders
    if problems := identity_problems(before, now, where=step.name):
        raise ConfigError(problems)


def _evaluate(
    plan: Plan,
    job: Job,
    frozen: FrozenCheck,
    examples: Sequence[Example],
    checkpoint: Checkpoint,
    stop: StopRequest,
    *,
    left: str = "",
) -> Outcome:
    try:
        evaluate_into_folder(
            plan, job, frozen, examples, checkpoint=checkpoint, stop=stop, left=left
        )
    except Interrupted as request:
        return stopped(plan, job.groups, request.reason)
    return Outcome(state="finished", code=0)


def _open_folder(plan: Plan, groups: ProcessGroups, *, wipe: bool) -> None:
    if groups.rank == 0:
        prepare(plan, wipe=wipe)
        write_status(plan.run_folder, state="running", diagnostics=plan.diagnostics)
    barrier(groups.world)  # the folder exists before anyone logs or looks into it
    log_to(plan.run_folder / FILES["log"], rank=groups.rank)
    log.info("run '%s' in %s", plan.config.run.tag, plan.run_folder)
    log.info("%s", plan.topology.table())


def _record(plan: Plan, groups: ProcessGroups) -> None:
    if groups.rank == 0:
        record(plan)
        record_data(plan)


def _open_stream(
    plan: Plan, groups: ProcessGroups, path: Path, place: Place | None
) -> DiagnosticsStream:
    """A file of rows as it was at ``place``; what came after it is trained anew."""
    stream = DiagnosticsStream(path, run=plan.config.run.tag, world=groups.world)
    stream.forget_after(*((place.stage, place.step) if place else ("A", 0)))
    return stream


def _feed(plan: Plan, groups: ProcessGroups) -> AbstractContextManager[object]:
    """What hands the stream's rows to sinks while it lasts: on rank 0, where there are any."""
    config = plan.config
    if groups.rank != 0 or not config.diagnostics.sinks:
        return nullcontext()
    return Feed(
        plan.diagnostics,
        lambda: open_sinks(
            config.diagnostics.sinks,
            plan.run_folder,
            run=config.run.tag,
            config=config_file.to_tree(config),
        ),
    )


def _show_finished(plan: Plan, groups: ProcessGroups) -> Outcome:
    if groups.rank == 0:
        metrics = json.loads((plan.run_folder / FILES["metrics"]).read_text(encoding="utf-8"))
        log.info("run '%s' is finished; nothing to do", plan.config.run.tag)
        print_result(plan, metrics)
        write_status(plan.run_folder, state="finished", code=0)
    return Outcome(state="finished", code=0)


def _train_stages(
    plan: Plan,
    job: Job,
    stages: Sequence[Stage],
    place: Place | None,
    validator: Validator,
    stop: StopRequest,
    writer: CheckpointWriter,
) -> str:
    """Trains what is left; returns why it ended early, or an empty string."""
    if job.groups.rank == 0:
        lengths = {stage.name: stage.num_steps for stage in stages}
        write_status(plan.run_folder, state="running", num_steps=lengths)
    stream = RankStream(
        plan.diagnostics,
        run=plan.config.run.tag,
        groups=job.groups,
        settings=plan.config.diagnostics,
        after=(place.stage, place.step) if place else ("A", 0),
    )
    memory = place.health if place else None
    doctor = Doctor(job, draw_health(plan.config), stages=stages, memory=memory)
    # Outside of whatever writes the stream, so that the last rows are handed on too.
    with _feed(plan, job.groups), Reporter(plan.run_folder, stream, doctor, stop=stop) as reporter:
        return _train_with(plan, job, stages, place, validator, stop, writer, reporter)


def _train_with(
    plan: Plan,
    job: Job,
    stages: Sequence[Stage],
    place: Place | None,
    validator: Validator,
    stop: StopRequest,
    writer: CheckpointWriter,
    reporter: Reporter,
) -> str:
    def save(stage: str, step: int) -> None:
        # Rows up to a step that a run may go on from are in the file by then.
        reporter.flush()
        health = reporter.health_memory()
        writer.save(place_at(stages, stage, step, trainer, validator, health=health))

    trainer = Trainer(
        job,
        record=reporter.record,
        save=save,
        validate=validator.after_step,
        num_skipped=place.num_skipped if place else 0,
        num_tokens=place.tokens if place else 0,
        balance=Balance.from_state(place.balance if place else {}),
    )
    for stage in stages:
        done = resume.steps_done(plan, stage.name, place)
        if done >= stage.num_steps:
            continue
        log.info("stage %s: steps %d to %d", stage.name, done + 1, stage.num_steps)
        start = time.perf_counter()
        reason = trainer.run(stage, done=done, stop=stop)
        log.info("stage %s: %.0f s", stage.name, time.perf_counter() - start)
        if trainer.guard.num_skipped:
            log.warning("skipped steps so far: %d", trainer.guard.num_skipped)
        report_state(job)
        report_padding(job, stage.name, trainer.padding)
        warn_of_cuts(job, f"stage {stage.name}")
        teacher_build.warn_of_live(job, f"stage {stage.name}")
        if reason:
            return reason
    return ""
