"""``latentwire from-env``: what a runner starts, from its own settings and the environment.

    latentwire from-env --recipe NAME [--hero] [key=value ...] -- [arguments of the trainer ...]

Standard output has one argument a line: ``key=value`` for the trainer, ``--list=key=a,b`` for a
sweep, ``--needs=name`` for a package that this run needs. The whole configuration is checked, with
the arguments behind ``--`` that the runner passes on itself.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from latentwire import config_file, environment
from latentwire.accept import was_accepted
from latentwire.arguments import Parser, parse
from latentwire.config import Config, ConfigError

_HERO_SUFFIXES = ("_hero", "-hero")


def main(arguments: Sequence[str]) -> int:
    """Prints a runner's arguments.

    Returns:
        0, or 2 with every problem printed.
    """
    try:
        for line in resolve(arguments):
            print(line)
    except ConfigError as error:
        print("\n  ".join(["latentwire cannot start:", *error.problems]), file=sys.stderr)
        return 2
    return 0


def resolve(arguments: Sequence[str]) -> list[str]:
    """The lines of ``main``.

    Raises:
        ConfigError: with every problem of the variables, or else of the configuration.
    """
    given = list(arguments)
    cut = given.index("--") if "--" in given else len(given)
    parser = Parser(prog="latentwire from-env", description=__doc__, allow_abbrev=False)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--hero", action="store_true")
    parser.add_argument("overrides", nargs="*")
    runner = parser.parse_intermixed_args(given[:cut])
    passed_on = parse(["--recipe", runner.recipe, *given[cut + 1 :]])
    own = [*environment.RUNNER_DEFAULTS, *runner.overrides]
    names = config_file.decoder_names(passed_on.recipe, own)
    settings = environment.read(os.environ, decoders=names)
    variables = [_of_hero(text) if runner.hero else text for text in settings.overrides]
    first = [text.partition(",")[0] for text in settings.lists]
    try:
        config = config_file.load(
            passed_on.recipe, [*own, *variables, *first, *passed_on.overrides]
        )
    except ConfigError as error:
        raise ConfigError(environment.with_sources(error.problems, settings.sources)) from None
    if runner.hero:
        default = config_file.load(passed_on.recipe, own).run.tag
        _look_for_base(config, default)
    return [
        *own,
        *variables,
        *(f"--list={text}" for text in settings.lists),
        *(f"--needs={name}" for name in needed_packages(config)),
    ]


def _of_hero(override: str) -> str:
    """The override, where it names the run as that of a hero: not the run that it builds on."""
    is_tag = override.startswith("run.tag=")
    return f"{override}_hero" if is_tag and not override.endswith(_HERO_SUFFIXES) else override


def needed_packages(config: Config) -> list[str]:
    """Packages that a run with this configuration needs beyond those that every run does."""
    decoders = config.decoders.values()
    is_quantized = any(decoder.quantization != "none" for decoder in decoders)
    needs = {
        "peft": config.encoder.lora.rank > 0 or any(d.lora.rank > 0 for d in decoders),
        "accelerate": is_quantized,
        "bitsandbytes": is_quantized or config.optim.optimizer == "adamw8bit",
    }
    return [name for name, is_needed in needs.items() if is_needed]


def base_tag(tag: str, default: str) -> str:
    """The tag of the run that a hero run builds on.

    Args:
        tag: of the hero run.
        default: what the runner calls a hero run of no other name.
    """
    for name in (tag, default):
        for suffix in _HERO_SUFFIXES:
            if name.endswith(suffix):
                return name.removesuffix(suffix)
    return default


def _look_for_base(config: Config, default: str) -> None:
    base = os.environ.get("BASE_TAG", "").strip() or base_tag(config.run.tag, default)
    folder = Path(config.run.root) / base
    if not was_accepted(folder):
        print(
            f"warning: {folder}/accept.json does not say that run '{base}' was accepted, and this "
            f"hero run builds on it; check it with: latentwire accept {folder} (another base run: "
            "BASE_TAG=...)",
            file=sys.stderr,
        )


def main_table(arguments: Sequence[str]) -> int:
    """Prints the table of all variables.

    Returns:
        0, or 2 for bad input.
    """
    parser = Parser(
        prog="latentwire env-table",
        description="Prints every variable that the runners read, as a Markdown table.",
        allow_abbrev=False,
    )
    try:
        parser.parse_args(list(arguments))
    except ConfigError as error:
        print("\n  ".join(["latentwire env-table:", *error.problems]), file=sys.stderr)
        return 2
    print(default_table())
    return 0


def default_table() -> str:
    """The table of all variables, with the runners' defaults."""
    return environment.table(
        *(config_file.load(recipe, environment.RUNNER_DEFAULTS) for recipe in ("smoke", "squad_8b"))
    )
