"""``latentwire tiny build``: pretrains a pair of small models, and says how well they read."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from latentwire.config_file import PACKAGED
from latentwire.data import tiny


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds the models asked for, and prints what each reads from text; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    specs = tiny.load_specs(PACKAGED / f"{options.size}.yaml")
    if options.only not in (None, *specs):
        parser.error(
            f"--only: '{options.only}' is no model of the pair '{options.size}': {', '.join(specs)}"
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    for name, spec in specs.items():
        if options.only not in (None, name):
            continue
        model, tokenizer = tiny.pretrain(
            spec, seed=options.seed, steps=options.steps, device=options.device
        )
        tiny.save(model, tokenizer, options.out / name)
        for hard in (False, True):
            scores = tiny.reading_accuracy(
                model, tokenizer, seed=options.seed, num_documents=options.documents, hard=hard
            )
            print(_line(name, scores, hard=hard), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="latentwire tiny",
        description="Pretrains a pair of small models on generated profiles, reproducibly.",
        epilog="Prints for each model how many questions it answers from text (exact match, on "
        "documents of the test split), on the plain and on the harder profiles.",
    )
    parser.add_argument("action", choices=["build"])
    parser.add_argument("--out", type=Path, required=True, help="folder for the models")
    parser.add_argument(
        "--size", choices=tiny.sizes(), default="tiny", help="which pair (default: %(default)s)"
    )
    parser.add_argument("--only", metavar="MODEL", help="one model of the pair (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps", type=_positive, help="of each phase (default: what the specification says)"
    )
    parser.add_argument(
        "--device",
        type=_device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to pretrain: cpu, cuda or cuda:N (default here: %(default)s)",
    )
    parser.add_argument(
        "--documents",
        type=_positive,
        default=200,
        help="of each kind of profiles, read at the end (default: %(default)s)",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least 1")
    return int(text)


def _device(text: str) -> torch.device:
    """The device of this name, if this machine has it."""
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    there = ["cpu", *gpus, *(["cuda"] if gpus else [])]
    if text not in there:
        raise argparse.ArgumentTypeError(f"'{text}' is not here; there is {', '.join(there)}")
    return torch.device(text)


def _line(name: str, scores: dict[str, float], *, hard: bool) -> str:
    """For example ``a, plain profiles: em 0.960 (plain 0.999, shared 0.495)``."""
    kinds = sorted(key for key in scores if key != "em")
    parts = ", ".join(f"{kind.removeprefix('em_')} {scores[kind]:.3f}" for kind in kinds)
    return f"{name}, {'hard' if hard else 'plain'} profiles: em {scores['em']:.3f} ({parts})"
