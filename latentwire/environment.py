"""The runners' environment variables, each with the configuration keys that it sets.

Pure: a mapping of variables goes in, arguments of the trainer or of a sweep come out. A recipe's
decoders have variables too, by their names: ``<NAME>_ID`` and ``<NAME>_RANKS``.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from latentwire.config import Config, ConfigError, flatten
from latentwire.config_file import REPOSITORY

RUNNER_DEFAULTS = ("adapter.use_deep_prefix=true", "gist.use_gist_head=true")
"""What both runners set before any variable."""

DATASETS = ("profiles", "squad", "hotpot", "jsonl")
_SUFFIXES = {".json": "squad", ".parquet": "squad", ".jsonl": "jsonl"}
_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")

_OF_RUNNERS = (
    ("CUDA_VISIBLE_DEVICES", "all", "GPUs, one process each; empty: a run on the CPU"),
    ("NPROC", "1 or 2; one a GPU", "processes"),
    ("BASE_TAG", "`RUN_TAG` without `_hero`", "with `--hero`: the accepted run it builds on"),
)
"""Variables that the runners read themselves: name, default, meaning."""

_Read = Callable[[str], str]
"""Checks a variable's text and returns the key's value; raises ValueError with the fix."""


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One environment variable."""

    name: str
    key: str
    """The configuration key that takes its value."""
    meaning: str
    read: _Read
    with_it: tuple[str, ...] = ()
    """Further overrides that its value needs."""
    is_list: bool = False
    """Its value is several values of the key: points of a sweep."""
    excludes: tuple[str, ...] = ()
    """Variables that cannot be given beside it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an environment asks for."""

    overrides: list[str] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)
    """``key=a,b,c`` of a sweep."""
    sources: dict[str, str] = field(default_factory=dict)
    """By key, the variable that set it, as ``NAME=value``."""


def _whole(low: int) -> _Read:
    def read(text: str) -> str:
        if not text.isdecimal() or not text.isascii() or int(text) < low:
            raise ValueError(f"give a whole number, {low} or more")
        return str(int(text))

    return read


def _number(text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError("give a number, 0 or more")
    return text


def _switch(text: str) -> str:
    if text.lower() not in _ON + _OFF:
        raise ValueError("give 1 or 0")
    return "true" if text.lower() in _ON else "false"


def _text(text: str) -> str:
    if "\n" in text:
        raise ValueError("give a text of one line")
    return text


def _several(low: int) -> _Read:
    def read(text: str) -> str:
        parts = [part.strip() for part in text.split(",")]
        try:
            values = [_whole(low)(part) for part in parts]
        except ValueError:
            raise ValueError(f"give whole numbers, {low} or more, as 8,16") from None
        if len(set(values)) < len(values):
            raise ValueError("give each value once")
        return ",".join(values)

    return read


def _dataset(text: str) -> str:
    if text in DATASETS or (Path(text).suffix.lower() in _SUFFIXES and Path(text).is_file()):
        return _text(text)
    raise ValueError(
        f"give {', '.join(DATASETS[:-1])} or {DATASETS[-1]}, or the path of a .json, .jsonl or "
        ".parquet file that exists"
    )


_ONE_LENGTH = ("train.stage_a.ratios=[]", "train.stage_b.ratios=[]", "eval.ratios=[]")
"""A recipe's wire has several ratios; who names a length wants that one alone."""
_QUERIES = ("wire.pooling=queries", *_ONE_LENGTH)
_RATIO = ("wire.num_latents=0", *_ONE_LENGTH)

_VARIABLES = (
    Variable(
        name="RUN_TAG", key="run.tag", read=_text, meaning="the run's name: files go to runs/<tag>/"
    ),
    Variable(
        name="DATASET",
        key="data.source",
        read=_dataset,
        meaning="`profiles`, `squad`, `hotpot`, `jsonl` or a file's path (also sets `data.path`)",
    ),
    Variable(
        name="SAMPLES", key="eval.samples", read=_whole(0), meaning="evaluated examples; 0: all"
    ),
    Variable(
        name="MAX_NEW_TOKENS",
        key="eval.max_new_tokens",
        read=_whole(1),
        meaning="longest generated answer",
    ),
    *(
        variable
        for stage in "ab"
        for variable in (
            Variable(
                name=f"TRAIN_SAMPLES_STAGE{stage.upper()}",
                key=f"train.stage_{stage}.samples",
                read=_whole(0),
                meaning=f"training examples of Stage {stage.upper()}; 0: all",
            ),
            Variable(
                name=f"EPOCHS_STAGE{stage.upper()}",
                key=f"train.stage_{stage}.epochs",
                read=_number,
                with_it=(f"train.stage_{stage}.steps=null",),
                meaning=f"passes over them in Stage {stage.upper()}, in place of its steps",
            ),
            Variable(
                name=f"BATCH_SIZE_{stage.upper()}",
                key=f"train.stage_{stage}.batch_size",
                read=_whole(1),
                meaning=f"examples per step in Stage {stage.upper()}",
            ),
        )
    ),
    Variable(
        name="BATCH_SIZE",
        key="train.batch_size",
        read=_whole(1),
        meaning="examples per step in both stages",
    ),
    Variable(
        name="LATENT_LEN",
        key="wire.num_latents",
        read=_whole(1),
        with_it=_QUERIES,
        excludes=("LATENT_LEN_LIST", "LATENT_RATIO"),
        meaning="latents per text, read by learned queries (`wire.pooling=queries`)",
    ),
    Variable(
        name="LATENT_LEN_LIST",
        key="wire.num_latents",
        read=_several(1),
        with_it=_QUERIES,
        is_list=True,
        excludes=("LATENT_RATIO",),
        meaning="several of them: a sweep",
    ),
    Variable(
        name="LATENT_RATIO",
        key="wire.ratio",
        read=_whole(1),
        with_it=_RATIO,
        meaning="encoder tokens per latent instead, that ratio alone",
    ),
    *(
        variable
        for name, key, low, meaning in (
            ("D_Z", "wire.d_z", 1, "width of a latent"),
            ("REFINER_LAYERS", "wire.refiner.layers", 0, "layers of the refiner"),
            ("REFINER_HEADS", "wire.refiner.heads", 1, "its attention heads"),
        )
        for variable in (
            Variable(
                name=name,
                key=key,
                read=_whole(low),
                excludes=(f"{name}_LIST",),
                meaning=meaning,
            ),
            Variable(
                name=f"{name}_LIST",
                key=key,
                read=_several(low),
                is_list=True,
                meaning="several of them: a sweep",
            ),
        )
    ),
    Variable(
        name="USE_DEEP_PREFIX",
        key="adapter.use_deep_prefix",
        read=_switch,
        meaning="whether decoders read the wire in every layer",
    ),
    Variable(
        name="DEEP_PREFIX_LEN",
        key="adapter.deep_prefix_len",
        read=_whole(0),
        meaning="positions of the deep prefix; 0: one per latent",
    ),
    Variable(
        name="USE_GIST_HEAD",
        key="gist.use_gist_head",
        read=_switch,
        meaning="whether a head names the text from the wire",
    ),
    Variable(name="GIST_WEIGHT", key="objectives.gist", read=_number, meaning="its loss's weight"),
    Variable(
        name="GIST_LEN", key="gist.gist_len", read=_whole(1), meaning="how many tokens it names"
    ),
    Variable(name="GIST_HIDDEN", key="gist.hidden", read=_whole(1), meaning="its width"),
    Variable(name="GIST_LAYERS", key="gist.layers", read=_whole(0), meaning="its layers"),
)


def variables(decoders: Iterable[str]) -> tuple[Variable, ...]:
    """Every variable, those of the named decoders included."""
    return _VARIABLES + tuple(
        variable
        for name in decoders
        for variable in (
            Variable(
                name=f"{name.upper()}_ID",
                key=f"decoders.{name}.model",
                read=_text,
                meaning=f"folder or hub id of `{name}`",
            ),
            Variable(
                name=f"{name.upper()}_RANKS",
                key=f"decoders.{name}.ranks",
                read=_whole(1),
                meaning=f"processes (GPUs) that hold `{name}`; otherwise equal parts",
            ),
        )
    )


def read(environment: Mapping[str, str], *, decoders: Iterable[str]) -> Settings:
    """What the variables of an environment mean; an empty one counts as not given.

    Args:
        decoders: names of the recipe's decoders.

    Raises:
        ConfigError: values that cannot be read, and variables that exclude each other; each
            problem names the variable, the value and the fix.
    """
    settings = Settings()
    problems = []
    for variable in variables(decoders):
        text = environment.get(variable.name, "").strip()
        if not text:
            continue
        source = f"{variable.name}={text}"
        problems += [
            f"{source} and {other}={environment[other]}: give one of them; unset the other"
            for other in variable.excludes
            if environment.get(other, "").strip()
        ]
        try:
            value = variable.read(text)
        except ValueError as fix:
            problems.append(f"{source}: {fix}")
            continue
        given = _source_overrides(value) if variable.name == "DATASET" else []
        settings.overrides.extend(variable.with_it)
        if variable.is_list:
            settings.lists.append(f"{variable.key}={value}")
        else:
            settings.overrides.extend(given or [f"{variable.key}={value}"])
        keys = [text.partition("=")[0] for text in (*variable.with_it, *given)]
        settings.sources.update(dict.fromkeys([variable.key, *keys], source))
    if problems:
        raise ConfigError(problems)
    return settings


def _source_overrides(dataset: str) -> list[str]:
    # The recipe's own path belongs to the recipe's own source.
    path = "null" if dataset in DATASETS else dataset
    source = dataset if dataset in DATASETS else _SUFFIXES[Path(dataset).suffix.lower()]
    return [f"data.source={source}", f"data.path={path}"]


def with_sources(problems: Sequence[str], sources: Mapping[str, str]) -> list[str]:
    """The problems of a configuration, each with the variable that set its key."""
    found = []
    for problem in problems:
        source = sources.get(problem.partition(":")[0])
        found.append(f"{problem} (from {source})" if source else problem)
    return found


def table(on_cpu: Config, on_gpus: Config) -> str:
    """Every variable, its key and its defaults, as a Markdown table.

    Args:
        on_cpu: the runners' configuration without a GPU.
        on_gpus: their configuration with GPUs.
    """
    lines = ["| variable | key | default (CPU; GPUs) | meaning |", "|---|---|---|---|"]
    lines += [f"| `{name}` | | {default} | {meaning} |" for name, default, meaning in _OF_RUNNERS]
    flat = [flatten(config) for config in (on_cpu, on_gpus)]
    for variable in variables(on_cpu.decoders):
        cpu, gpus = (_shown(values.get(variable.key)) for values in flat)
        default = "" if variable.is_list else cpu if cpu == gpus else f"{cpu}; {gpus}"
        if variable.key == "run.tag":
            default = "the runner's name"
        lines.append(f"| `{variable.name}` | `{variable.key}` | {default} | {variable.meaning} |")
    return "\n".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value.removeprefix(f"{REPOSITORY}/")
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)
