"""``latentwire tiny build``: pretrains a pair of small models, and says how well they read."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError

from latentwire.config import ConfigError
from latentwire.config_file import PACKAGED
from latentwire.data import tiny
from latentwire.writable import make_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds the models asked for, and prints what each reads from text.

    Returns:
        0 done, 1 a model cannot be saved, 2 bad input.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    specs = tiny.load_specs(PACKAGED / f"{options.size}.yaml")
    if options.only not in (None, *specs):
        parser.error(
            f"--only: '{options.only}' is no model of the pair '{options.size}': {', '.join(specs)}"
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    chosen = {name: spec for name, spec in specs.items() if options.only in (None, name)}
    try:
        for name in chosen:
            make_folder("--out", options.out / name)
    except ConfigError as error:
        print("\n".join(["latentwire tiny:", *error.problems]), file=sys.stderr)
        return 2
    for name, spec in chosen.items():
        model, tokenizer = tiny.pretrain(
            spec, seed=options.seed, steps=options.steps, device=options.device
        )
        try:
            tiny.save(model, tokenizer, options.out / name)
        except (OSError, SafetensorError) as error:
            print(f"latentwire tiny: {options.out / name} is not saved: {error}", file=sys.stderr)
            return 1
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
