"""A run from its first process group to its result table: Stages A and B, then C."""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

from latentwire import config_file
from latentwire.checkpointing import state
from latentwire.checkpointing.commit import STAGES, Step, newest
from latentwire.config import ConfigError
from latentwire.data.example import Example
from latentwire.data.sources import DataSource, Split, open_source
from latentwire.diagnostics.stream import DiagnosticsStream
from latentwire.distributed import groups as process_groups
from latentwire.distributed.assembly import Job, assemble
from latentwire.distributed.groups import ProcessGroups
from latentwire.distributed.messages import barrier, broadcast_json
from latentwire.evaluation.metrics import Prediction
from latentwire.evaluation.runner import evaluate, held_out
from latentwire.evaluation.table import result_table
from latentwire.training.preflight import Plan
from latentwire.training.records import StepRecord
from latentwire.training.run_folder import PROGRESS, log_to, prepare
from latentwire.training.signals import StopRequest
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
        examples = _held_out(plan)
        job = assemble(config, groups)
        _report_units(job)
        place = _restore(resume, job)
        stream = DiagnosticsStream(
            plan.run_folder / FILES["diagnostics"], run=config.run.tag, world=groups.world
        )
        stream.forget_after(*(place or ("A", 0)))
        reason = _train_stages(plan, job, stages, place, stream, stop)
        if reason:
            return _stopped(plan, groups, reason)
        _evaluate_into_folder(plan, job, examples)
    return Outcome(state="finished", code=0)


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
    examples = _held_out(plan)
    job = assemble(config, groups)
    state.restore(step, job.units, with_optimizer=False)
    log.info("loaded %s", step.path)
    _evaluate_into_folder(plan, job, examples)
    return Outcome(state="finished", code=0)


def open_source_for(plan: Plan, split: Split) -> DataSource:
    """One split of the run's data."""
    data = plan.config.data
    return open_source(source=data.source, path=data.path, split=split, seed=plan.config.run.seed)


def _open_folder(plan: Plan, groups: ProcessGroups, *, wipe: bool) -> Step | None:
    """Prepares the run's folder and agrees on the checkpoint to resume from."""
    if groups.rank == 0:
        prepare(plan, wipe=wipe)
        write_status(plan.run_folder, state="running")
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
        _print_result(plan, metrics)
        write_status(plan.run_folder, state="finished", code=0)
    return Outcome(state="finished", code=0)


def _report_units(job: Job) -> None:
    for name, unit in job.units.items():
        parameters = [p for p in unit.module.parameters() if p.requires_grad]
        log.info("unit %s: %d trained parameters", name, sum(p.numel() for p in parameters))


def _restore(step: Step | None, job: Job) -> tuple[str, int] | None:
    if step is None:
        return None
    place = state.restore(step, job.units)
    log.info("resumed from %s", step.path)
    return place.stage, place.step


def _train_stages(
    plan: Plan,
    job: Job,
    stages: Sequence[Stage],
    place: tuple[str, int] | None,
    stream: DiagnosticsStream,
    stop: StopRequest,
) -> str:
    """Trains what is left; returns why it ended early, or an empty string."""
    config, world = plan.config, job.groups.world
    tree = config_file.to_tree(config)

    def save(stage: str, step: int) -> None:
        samples = step * config.train.batch_size
        at = state.Place(stage=stage, step=step, samples=samples)
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

    trainer = Trainer(job, record=record, save=save)
    for stage in stages:
        done = _steps_done(stage.name, place)
        if done >= stage.num_steps:
            continue
        log.info("stage %s: steps %d to %d", stage.name, done + 1, stage.num_steps)
        start = time.perf_counter()
        reason = trainer.run(stage, done=done, stop=stop)
        log.info("stage %s: %.0f s", stage.name, time.perf_counter() - start)
        _warn_of_cuts(job, f"stage {stage.name}")
        if reason:
            return reason
    return ""


def _steps_done(stage: str, place: tuple[str, int] | None) -> int:
    if place is None or STAGES.index(stage) > STAGES.index(place[0]):
        return 0
    # A run that reached Stage B has left Stage A behind, whatever A's length says now.
    return place[1] if stage == place[0] else 1 << 62


def _progress(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    first = {row["decoder"]: row for row in reversed(rows)}
    values = {f"tf/{name}": f"{row['tf']:.3f}" for name, row in sorted(first.items())}
    values |= {f"acc/{name}": f"{row['first_acc']:.2f}" for name, row in sorted(first.items())}
    seconds = max(row["sec_per_step"] for row in rows)
    return values | {"ex/s": f"{rows[0]['num_examples'] / seconds:.0f}"}


def _stopped(plan: Plan, groups: ProcessGroups, reason: str) -> Outcome:
    code = 0 if reason == "preempted" else 1
    if groups.rank == 0:
        log.info("%s: saved; the same command continues", reason)
        write_status(plan.run_folder, state=reason, code=code, reason="asked by a signal")
    barrier(groups.world)
    return Outcome(state=reason, code=code)


def _held_out(plan: Plan) -> list[Example]:
    """The examples of Stage C, drawn before training so that a poor choice shows at once."""
    config = plan.config
    source = open_source_for(plan, config.eval.split)
    examples = held_out(source, seed=config.run.seed, samples=config.eval.samples)
    if len({example.context for example in examples}) < 2:
        raise ConfigError(
            [
                f"eval.samples: {config.eval.samples} draws only one document of the "
                f"{config.eval.split} split, and the wrong-wire control needs two; use more"
            ]
        )
    return examples


def _evaluate_into_folder(plan: Plan, job: Job, examples: Sequence[Example]) -> None:
    """Stage C: evaluates the wire as it stands and writes metrics and predictions."""
    config = plan.config
    step = _agreed_newest(plan, job.groups)
    log.info("stage C: %d %s examples", len(examples), config.eval.split)
    result = evaluate(job, examples)
    _warn_of_cuts(job, "stage C")
    if result is not None:
        metrics, predictions = result
        metrics["checkpoint"] = (
            {"stage": step.stage, "step": step.number} if step else {"stage": None, "step": 0}
        )
        metrics["split"] = config.eval.split
        _write_results(plan, metrics, predictions)
        _print_result(plan, metrics)
        write_status(plan.run_folder, state="finished", code=0)
    barrier(job.groups.world)


def _warn_of_cuts(job: Job, when: str) -> None:
    """Says how many texts did not fit; counted anew after each stage."""
    cuts: dict[str, set[int]] = {}
    if job.groups.rank == 0:
        limit = job.tokenizer.max_tokens
        cuts[f"texts longer than the encoder's {limit} tokens"] = job.tokenizer.cut_texts
    for name, prompts in job.prompts.items():
        if job.groups.decoder(name).rank != 0:
            continue
        cuts[f"contexts longer than the window of {prompts.window} tokens of '{name}'"] = (
            prompts.cut_contexts
        )
        cuts[f"answers longer than {prompts.max_answer_tokens} tokens of '{name}'"] = (
            prompts.cut_answers
        )
    for what, found in cuts.items():
        if found:
            log.warning("%s: cut %d %s", when, len(found), what)
        found.clear()


def _write_results(plan: Plan, metrics: dict[str, Any], predictions: Sequence[Prediction]) -> None:
    lines = (json.dumps(dataclasses.asdict(item)) + "\n" for item in predictions)
    texts = {
        "predictions": "".join(lines),
        "metrics": json.dumps(metrics, indent=2, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        path = plan.run_folder / FILES[name]
        fresh = path.with_suffix(".tmp")
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, path)


def _print_result(plan: Plan, metrics: dict[str, Any]) -> None:
    log.info("\n%s\n", result_table(metrics))
    log.info("files in %s, checkpoints in %s", plan.run_folder, plan.checkpoint_folder)
