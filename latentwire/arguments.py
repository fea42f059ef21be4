"""The trainer's command line: a recipe, ``key=value`` overrides, and flags that stand for keys."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import yaml

from latentwire import strict_yaml
from latentwire.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag beside ``key=value``."""

    key: str
    metavar: str | None
    """What its value is called; None for a switch, which sets ``true``."""
    meaning: str


FLAGS = {
    "--use_deep_prefix": Flag(
        key="adapter.use_deep_prefix",
        metavar=None,
        meaning="the decoders read the wire in every layer's keys and values",
    ),
    "--deep_prefix_len": Flag(
        key="adapter.deep_prefix_len", metavar="N", meaning="positions of the deep prefix"
    ),
    "--use_gist_head": Flag(
        key="gist.use_gist_head", metavar=None, meaning="a head names the text from the wire"
    ),
    "--gist_weight": Flag(
        key="objectives.gist", metavar="W", meaning="weight of the gist head's cross-entropy"
    ),
    "--grad_diag_interval": Flag(
        key="diagnostics.grad_diag_interval",
        metavar="N",
        meaning="steps between rows with every objective's gradient norm",
    ),
    "--grad_diag_components": Flag(
        key="diagnostics.grad_diag_components",
        metavar="A,B",
        meaning="objectives whose gradient norms are measured",
    ),
    "--diagnostic_log": Flag(
        key="diagnostics.diagnostic_log", metavar="PATH", meaning="the diagnostics stream's file"
    ),
}
"""Flags, and the keys they stand for."""


_RECIPE = "smoke"


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are a ``ConfigError``."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError([f"{message}; see --help"])


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """A parsed command line of the trainer; flags are among the overrides."""

    recipe: str
    overrides: list[str]
    dry_run: bool
    fresh: bool
    overwrite: bool
    resume_from: str | None = None
    """The checkpoint step to go on from, in place of the newest."""
    wire: str | None = None
    """An exported wire to evaluate, in place of a run's checkpoint."""


def parse(arguments: Sequence[str], *, prog: str = "latentwire train") -> Arguments:
    """Reads a command line of the trainer.

    Raises:
        ConfigError: an unknown flag, or a flag and its key with different values.
    """
    parser = Parser(
        prog=prog, description="Trains and evaluates a wire; see README.md.", allow_abbrev=False
    )
    add_run(parser)
    parser.set_defaults(recipe=None)
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and end")
    parser.add_argument("--fresh", action="store_true", help="refuse to continue an existing run")
    parser.add_argument(
        "--overwrite", action="store_true", help="with --fresh: delete the existing run first"
    )
    parser.add_argument(
        "--resume-from",
        metavar="STEP",
        help="go on from this step, e.g. stageB/step-00000100, in place of the newest",
    )
    parser.add_argument(
        "--wire", metavar="FOLDER", help="of eval: an exported wire, in place of a run's checkpoint"
    )
    options = parser.parse_intermixed_args(list(arguments))
    if options.overwrite and not options.fresh:
        raise ConfigError(["--overwrite: it deletes a run that --fresh starts anew; add --fresh"])
    for flag, given in (("--recipe", options.recipe), ("--dry-run", options.dry_run)):
        if options.wire is not None and given:
            raise ConfigError([f"{flag} and --wire: an export has its own settings; leave one out"])
    if options.resume_from and options.fresh:
        raise ConfigError(["--resume-from and --fresh: a new run has no steps; leave one out"])
    return Arguments(
        recipe=options.recipe or _RECIPE,
        overrides=with_flags(options),
        dry_run=options.dry_run,
        fresh=options.fresh,
        overwrite=options.overwrite,
        resume_from=options.resume_from,
        wire=options.wire,
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds what names a configuration: recipe, flags and overrides."""
    parser.add_argument("--recipe", default=_RECIPE, help="a packaged recipe or a YAML file")
    for name, flag in FLAGS.items():
        meaning = f"{flag.key}: {flag.meaning}"
        if flag.metavar is None:
            parser.add_argument(
                name, dest=flag.key, action="append_const", const="true", help=meaning
            )
        else:
            parser.add_argument(
                name, dest=flag.key, action="append", metavar=flag.metavar, help=meaning
            )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration overrides")


def with_flags(options: argparse.Namespace) -> list[str]:
    """The overrides of a parser that ``add_run`` filled, those its flags mean included.

    Raises:
        ConfigError: a flag and its key are given with different values.
    """
    overrides = list(options.overrides)
    problems = []
    for name, flag in FLAGS.items():
        given = getattr(options, flag.key) or []
        keys = [text for text in options.overrides if text.startswith(f"{flag.key}=")]
        for value in given:
            shown = name if flag.metavar is None else f"{name} {value}"
            problems += [
                f"{shown} and {text}: both set {flag.key}, to different values; leave one out"
                for text in keys
                if not _same(value, text.partition("=")[2])
            ]
        overrides += [f"{flag.key}={value}" for value in given]
    if problems:
        raise ConfigError(problems)
    return overrides


def _same(one: str, other: str) -> bool:
    """Whether two values mean the same: ``0.1`` and ``1e-1``, ``a,b`` and ``[a, b]``."""
    return one == other or _value(one) == _value(other)


def _value(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        value = strict_yaml.load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    return value
