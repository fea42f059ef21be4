"""The ``latentwire`` command: training, evaluation, sweeps, acceptance, and what runners need."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

USAGE = """usage: latentwire <command> [arguments]

commands:
  train        train and evaluate a wire (the same as python -m latentwire.train)
  eval         evaluate the best or last checkpoint of a run
  sweep        run a cross product of configurations, and compare them
  accept       check whether a finished run is good enough to build on
  from-env     print what the runners' environment variables mean
  env-table    print every such variable as a Markdown table
  tiny build   pretrain the embedded pair

latentwire <command> --help tells more.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "eval": _eval,
        "sweep": _sweep,
        "accept": _accept,
        "from-env": _from_env,
        "env-table": _env_table,
        "tiny": _tiny,
    }
    if not given or given[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if given else 2
    if given[0] not in commands:
        print(f"latentwire: unknown command '{given[0]}'\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    return commands[given[0]](given[1:])


def _train(arguments: list[str]) -> int:
    from latentwire.train import main as train

    return train(arguments)


def _eval(arguments: list[str]) -> int:
    from latentwire.train import main_eval

    return main_eval(arguments)


def _sweep(arguments: list[str]) -> int:
    from latentwire.sweep import main as sweep

    return sweep(arguments)


def _accept(arguments: list[str]) -> int:
    from latentwire.accept import main as accept

    return accept(arguments)


def _from_env(arguments: list[str]) -> int:
    from latentwire.from_env import main as from_env

    return from_env(arguments)


def _env_table(arguments: list[str]) -> int:
    from latentwire.from_env import default_table

    print(default_table())
    return 0


def _tiny(arguments: list[str]) -> int:
    from latentwire.config_file import PACKAGED
    from latentwire.data import tiny

    specs = tiny.load_specs(PACKAGED / "tiny.yaml")
    parser = argparse.ArgumentParser(
        prog="latentwire tiny",
        description="Pretrains the embedded pair on generated profiles, reproducibly.",
    )
    parser.add_argument("action", choices=["build"])
    parser.add_argument("--out", type=Path, required=True, help="folder for the models")
    parser.add_argument("--only", choices=list(specs), help="one model of the pair (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="shorter or longer than the specification says")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    for name, spec in specs.items():
        if options.only in (None, name):
            model, tokenizer = tiny.pretrain(spec, seed=options.seed, steps=options.steps)
            tiny.save(model, tokenizer, options.out / name)
            scores = tiny.reading_accuracy(model, tokenizer, seed=options.seed)
            print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in scores.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
