"""The held-out examples of a run, drawn before training so that a poor choice shows at once."""

import logging
from collections.abc import Sequence

from latentwire.config import Config, ConfigError
from latentwire.data.articles import SourceError
from latentwire.data.example import Example
from latentwire.data.sources import DataSource, Split, contexts_of, open_source
from latentwire.evaluation.runner import held_out

log = logging.getLogger(__name__)


def open_split(config: Config, split: Split) -> DataSource:
    """One split of the run's data."""
    data = config.data
    return open_source(
        source=data.source,
        path=data.path,
        setting=data.setting,
        split=split,
        seed=config.run.seed,
        validation_path=data.validation_path,
        test_path=data.test_path,
    )


def draw_evaluation(config: Config) -> list[Example]:
    """The examples of Stage C.

    Raises:
        ConfigError: they are all about one document.
    """
    return _draw(
        config, "eval.samples", config.eval.samples, config.eval.split, "the wrong-wire control"
    )


def draw_validation(config: Config) -> list[Example]:
    """The examples of every validation; none where there is no validation.

    Raises:
        ConfigError: they are all about one document.
    """
    if not config.validation.interval:
        return []
    return _draw(
        config, "validation.samples", config.validation.samples, "validation", "a fair choice"
    )


def draw_health(config: Config) -> list[Example]:
    """The examples on which the wire's health is measured; none where it is not.

    Raises:
        ConfigError: they are all about one document.
    """
    diagnostics = config.diagnostics
    if not diagnostics.health_interval:
        return []
    return _draw(
        config,
        "diagnostics.health_samples",
        diagnostics.health_samples,
        "validation",
        "the wrong wire that the right one is compared with",
    )


def _draw(config: Config, key: str, samples: int, split: Split, need: str) -> list[Example]:
    source = open_split(config, split)
    if source.num_documents < 2:
        own = {"validation": config.data.validation_path, "test": config.data.test_path}[split]
        at = "data.path" if own is None else f"data.{split}_path"
        where = own or config.data.path or config.data.source
        raise ConfigError(
            [
                f"{at}: the {split} split of {where} has only "
                f"{source.num_documents} document, and {need} needs two; give more articles"
            ]
        )
    examples = held_out(source, seed=config.run.seed, samples=samples)
    if len({example.context for example in examples}) < 2:
        raise ConfigError(
            [
                f"{key}: {samples} draws only one document of the {split} split, and {need} needs "
                "two; use more"
            ]
        )
    return examples


def held_out_problems(config: Config, *, trained: Config | None, evaluation: bool) -> list[str]:
    """What is wrong with the draws; the data must have been checked.

    Args:
        trained: the configuration that the wire is trained with, where it is known.
        evaluation: nothing is trained, so nothing is validated.
    """
    found = [] if trained is None else leak_problems(config, trained, evaluation=evaluation)
    draws = (draw_evaluation,)
    for draw in draws if evaluation else (draw_validation, draw_health, *draws):
        try:
            draw(config)
        except ConfigError as error:
            found += error.problems
    return found


def leak_problems(config: Config, trained: Config, *, evaluation: bool) -> list[str]:
    """Held-out texts that the wire was, or will be, trained on; the data must have been checked.

    Args:
        trained: the configuration that the wire is trained with.
        evaluation: ``config`` evaluates only.
    """
    data = config.data
    files: dict[Split, str | None] = {
        "validation": data.validation_path,
        "test": data.test_path,
    }
    if not evaluation:
        splits = [split for split, file in files.items() if file is not None]
    elif data == trained.data and config.run.seed == trained.run.seed:
        return []  # it was refused there
    else:
        splits = [config.eval.split]
    if not splits:
        return []
    try:
        known = contexts_of(open_split(trained, "train"))
    except SourceError as error:
        log.warning("whether the wire was trained on these texts is not known: %s", error)
        return []
    found = []
    for split in splits:
        contexts = contexts_of(open_split(config, split))
        if shared := contexts & known:
            at = f"data.{split}_path: {files[split]}" if files[split] else f"eval.split: {split}"
            mend = "take them out of one of the two"
            if evaluation:
                mend = "give the run's own data keys, or other texts"
            found.append(
                f"{at}: {len(shared)} of its {len(contexts)} contexts are trained on, so that it "
                f"would measure memory; {mend}"
            )
    return found


def num_shared_documents(validated: Sequence[Example], evaluated: Sequence[Example]) -> int:
    """Documents of Stage C that validations read too.

    The best checkpoint is chosen on them, so what Stage C finds on them is no held-out result.
    """
    return len({one.context for one in validated} & {other.context for other in evaluated})
