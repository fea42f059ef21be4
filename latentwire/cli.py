"""The ``latentwire`` command: training, evaluation, sweeps, reports, and what runners need."""

import os
import sys
from collections.abc import Callable, Sequence

from latentwire.files import is_bad_name, name_problem

USAGE = """usage: latentwire <command> [arguments]

commands:
  train        train and evaluate a wire (the same as python -m latentwire.train)
  eval         evaluate the best or last checkpoint of a run
  sweep        run a cross product of configurations, and compare them
  slurm        what the batch scripts of launch/slurm/ ask while a job runs
  ablate       switch every component on and off, and write what was learned
  bench        say how long a step takes, and what of it computes
  plan         say whether a job fits its GPUs, and how it is laid out
  checkpoint   list, verify, compare and export what a run has saved
  ask          put questions on a text to the decoders that read its wire
  watch        show how a run goes, live or as plain lines
  report       write a run's report, or one that compares several runs
  accept       check whether a finished run is good enough to build on
  from-env     print what the runners' environment variables mean
  env-table    print every such variable as a Markdown table
  tiny build   pretrain the embedded pair

latentwire <command> --help tells more.
"""

_PIPE_CLOSED = 141
"""What a shell calls the end by SIGPIPE."""
_INTERRUPTED = 130
"""And by SIGINT."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "eval": _eval,
        "sweep": _sweep,
        "slurm": _slurm,
        "ablate": _ablate,
        "bench": _bench,
        "plan": _plan,
        "checkpoint": _checkpoint,
        "ask": _ask,
        "watch": _watch,
        "report": _report,
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
    try:
        code = commands[given[0]](given[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the lines has left; nothing may be flushed to there at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except KeyboardInterrupt:
        print("latentwire: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except OSError as error:
        # A training tells of its own, in the run's status too; without a file it is no one's name.
        if given[0] in ("train", "eval") or error.filename is None:
            raise
        print(f"latentwire {given[0]}: {name_problem(error)}", file=sys.stderr)
        return 2 if is_bad_name(error) else 1
    return code


def _train(arguments: list[str]) -> int:
    from latentwire.train import main as train

    return train(arguments)


def _eval(arguments: list[str]) -> int:
    from latentwire.train import main_eval

    return main_eval(arguments)


def _sweep(arguments: list[str]) -> int:
    from latentwire.sweep import main as sweep

    return sweep(arguments)


def _slurm(arguments: list[str]) -> int:
    from latentwire.slurm import main as slurm

    return slurm(arguments)


def _ablate(arguments: list[str]) -> int:
    from latentwire.ablate import main as ablate

    return ablate(arguments)


def _bench(arguments: list[str]) -> int:
    from latentwire.bench import main as bench

    return bench(arguments)


def _plan(arguments: list[str]) -> int:
    from latentwire.plan import main as plan

    return plan(arguments)


def _checkpoint(arguments: list[str]) -> int:
    from latentwire.checkpoint_tool import main as checkpoint

    return checkpoint(arguments)


def _ask(arguments: list[str]) -> int:
    from latentwire.ask import main as ask

    return ask(arguments)


def _watch(arguments: list[str]) -> int:
    from latentwire.watch.command import main as watch

    return watch(arguments)


def _report(arguments: list[str]) -> int:
    from latentwire.reporting import main as report

    return report(arguments)


def _accept(arguments: list[str]) -> int:
    from latentwire.accept import main as accept

    return accept(arguments)


def _from_env(arguments: list[str]) -> int:
    from latentwire.from_env import main as from_env

    return from_env(arguments)


def _env_table(arguments: list[str]) -> int:
    from latentwire.from_env import main_table

    return main_table(arguments)


def _tiny(arguments: list[str]) -> int:
    from latentwire.tiny_build import main as tiny

    return tiny(arguments)


if __name__ == "__main__":
    sys.exit(main())
