"""Stage C inside a run: draws the held-out examples, evaluates, and writes what was found."""

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from latentwire.checkpointing.commit import Step
from latentwire.config import ConfigError
from latentwire.data.example import Example
from latentwire.data.sources import DataSource, Split, open_source
from latentwire.distributed.assembly import Job
from latentwire.distributed.messages import barrier
from latentwire.evaluation.metrics import Prediction
from latentwire.evaluation.runner import evaluate, held_out
from latentwire.evaluation.table import result_table
from latentwire.training.frozen_check import FrozenCheck
from latentwire.training.preflight import Plan
from latentwire.training.signals import StopRequest
from latentwire.training.status import FILES, write_status

log = logging.getLogger(__name__)


def open_source_for(plan: Plan, split: Split) -> DataSource:
    """One split of the run's data."""
    data = plan.config.data
    return open_source(source=data.source, path=data.path, split=split, seed=plan.config.run.seed)


def draw_held_out(plan: Plan) -> list[Example]:
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


def evaluate_into_folder(
    plan: Plan,
    job: Job,
    frozen: FrozenCheck,
    examples: Sequence[Example],
    *,
    step: Step | None,
    stop: StopRequest,
) -> None:
    """Evaluates the wire as it stands and writes metrics and predictions. All ranks call.

    Args:
        step: the checkpoint that holds this wire.

    Raises:
        Interrupted: ``stop`` was asked for; nothing was written.
        RuntimeError: a decoder changed since ``frozen`` saw it; nothing was written.
    """
    config = plan.config
    log.info("stage C: %d %s examples", len(examples), config.eval.split)
    result = evaluate(job, examples, stop=lambda: stop.agreed(job.groups.world))
    warn_of_cuts(job, "stage C")
    hashes = frozen.verify()
    if result is not None:
        metrics, predictions = result
        metrics["checkpoint"] = (
            {"stage": step.stage, "step": step.number} if step else {"stage": None, "step": 0}
        )
        metrics["split"] = config.eval.split
        metrics["decoder_hashes"] = hashes
        _write_results(plan, metrics, predictions)
        print_result(plan, metrics)
        write_status(plan.run_folder, state="finished", code=0)
    barrier(job.groups.world)


def warn_of_cuts(job: Job, when: str) -> None:
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


def print_result(plan: Plan, metrics: dict[str, Any]) -> None:
    """The table, and where the files are."""
    log.info("\n%s\n", result_table(metrics))
    log.info("files in %s, checkpoints in %s", plan.run_folder, plan.checkpoint_folder)
