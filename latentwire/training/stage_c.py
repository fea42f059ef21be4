"""Stage C inside a run: evaluates a checkpoint on held-out examples and writes what was found."""

import dataclasses
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from latentwire.data.example import Example
from latentwire.data.sources import DataSource, Split
from latentwire.diagnostics.stream import encodable
from latentwire.distributed.assembly import Job
from latentwire.distributed.messages import barrier
from latentwire.evaluation.arms import arms_of
from latentwire.evaluation.gist import gist_scores
from latentwire.evaluation.metrics import Prediction
from latentwire.evaluation.reconstruction import reconstruction_scores
from latentwire.evaluation.runner import evaluate
from latentwire.evaluation.table import result_table
from latentwire.files import publish
from latentwire.report.tables import checkpoint_name
from latentwire.report.writing import write_report
from latentwire.training.cuts import warn_of_cuts
from latentwire.training.frozen_check import FrozenCheck
from latentwire.training.held_out import open_split
from latentwire.training.preflight import Plan
from latentwire.training.resume import Checkpoint
from latentwire.training.signals import StopRequest
from latentwire.training.status import FILES, write_status

log = logging.getLogger(__name__)

_COUNTED_DOCUMENTS = 256
"""Training documents whose tokens the gist's baselines count."""


def open_source_for(plan: Plan, split: Split) -> DataSource:
    """One split of the run's data."""
    return open_split(plan.config, split)


def evaluate_into_folder(
    plan: Plan,
    job: Job,
    frozen: FrozenCheck,
    examples: Sequence[Example],
    *,
    checkpoint: Checkpoint,
    stop: StopRequest,
    left: str = "",
) -> None:
    """Evaluates the wire as it stands and writes metrics and predictions. All ranks call.

    Args:
        checkpoint: the one that holds this wire.
        left: what keeps the run from being finished all the same.

    Raises:
        Interrupted: ``stop`` was asked for; nothing was written.
        RuntimeError: a decoder changed since ``frozen`` saw it; nothing was written.
    """
    config = plan.config
    log.info(
        "stage C: %d %s examples, %s",
        len(examples),
        config.eval.split,
        checkpoint_name(checkpoint.describe()),
    )
    result = evaluate(
        job,
        examples,
        arms=arms_of(config.eval.ratios),
        stop=_between_batches(job, stop),
    )
    # What follows takes each rank its own time: counts of texts, weights read again, a report.
    job.groups.expect_waits()
    gists = _gists(plan, job, examples) if config.gist.use_gist_head else None
    rewritten = reconstruction_scores(job, examples) if config.objectives.ae > 0 else None
    warn_of_cuts(job, "stage C")
    hashes = frozen.verify()
    if result is not None:
        metrics, predictions = result
        metrics["checkpoint"] = checkpoint.describe()
        metrics["split"] = config.eval.split
        metrics["decoder_hashes"] = hashes
        for name, scores in (gists or {}).items():
            metrics["decoders"][name]["gist"] = scores
        for name, by_arm in (rewritten or {}).items():
            metrics["decoders"][name]["reconstruction"] = by_arm
        _write_results(plan, metrics, predictions, examples)
        print_result(plan, metrics)
        state = "stopped" if left else "finished"
        _write_report(plan, state)
        write_status(plan.run_folder, state=state, code=0, reason=left)
    barrier(job.groups.world)


def _between_batches(job: Job, stop: StopRequest) -> Callable[[], str]:
    """What an evaluation asks before each batch; from the second on ranks answer soon."""
    batches = itertools.count()

    def reason() -> str:
        if next(batches):
            job.groups.expect_steps()
        return stop.agreed(job.groups.world)

    return reason


def _gists(plan: Plan, job: Job, examples: Sequence[Example]) -> dict[str, dict[str, float]] | None:
    source = open_source_for(plan, "train")
    step = -(-source.num_documents // _COUNTED_DOCUMENTS)
    documents = (source.examples(number) for number in range(0, source.num_documents, step))
    texts = [job.any_prompts.slot_text(questions[0]) for questions in documents if questions]
    return gist_scores(job, examples, trained_on=texts)


def _write_results(
    plan: Plan,
    metrics: dict[str, Any],
    predictions: Sequence[Prediction],
    examples: Sequence[Example],
) -> None:
    texts = {
        "predictions": _json_lines(map(dataclasses.asdict, predictions)),
        # Predictions name an example by its number and have no context, which many share.
        "examples": _json_lines(
            {"example": number, **dataclasses.asdict(item)} for number, item in enumerate(examples)
        ),
        "metrics": json.dumps(metrics, indent=2, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        publish(plan.run_folder / FILES[name], text.encode())


def _write_report(plan: Plan, state: str) -> None:
    """Before the status says so too, so that whoever waits for that finds it."""
    try:
        path = write_report([plan.run_folder], state=state)
    except Exception as error:
        # A page about the run is no reason to lose the run.
        log.warning("no report was made: %s: %s", type(error).__name__, error)
    else:
        log.info("report in %s", path)


def _json_lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(encodable(row), allow_nan=False) + "\n" for row in rows)


def print_result(plan: Plan, metrics: dict[str, Any]) -> None:
    """The table, and where the files are."""
    log.info("\n%s\n%s\n", result_table(metrics), checkpoint_name(metrics["checkpoint"]))
    log.info("files in %s, checkpoints in %s", plan.run_folder, plan.checkpoint_folder)
