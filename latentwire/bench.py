"""``latentwire bench``: how long a step takes, what of it computes, and what a plain loop takes.

On several ranks: ``torchrun --nproc_per_node N -m latentwire.bench ...``.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from latentwire import config_file
from latentwire.arguments import Parser, add_run, with_flags
from latentwire.benching import measure, plain_loop, result
from latentwire.benching.measure import Settings
from latentwire.benching.setting import Texts, default_folder, made_up_overrides
from latentwire.config import ConfigError
from latentwire.distributed import groups as process_groups
from latentwire.training.preflight import preflight
from latentwire.training.run_folder import log_to
from latentwire.writable import check_file

_RECIPE = "bench"
_SETTINGS = {"steps": "of each block", "repeats": "blocks", "warmup": "steps before them"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints.

    Returns:
        0 done, 1 the figures were printed and cannot be written, 2 bad input.
    """
    log_to(None, rank=1)  # what a run says of itself is not wanted here
    try:
        options, overrides = _parse(sys.argv[1:] if arguments is None else arguments)
        code = _bench(options, overrides)
        process_groups.stop()
        return code
    except ConfigError as error:
        if process_groups.launch_rank() == 0:
            print("\n  ".join(["latentwire bench:", *error.problems]), file=sys.stderr)
        return 2


def _parse(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    parser = Parser(prog="latentwire bench", description=__doc__, allow_abbrev=False)
    add_run(parser)
    parser.set_defaults(recipe=_RECIPE)
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    for name, meaning in _SETTINGS.items():
        default = getattr(Settings(), name)
        parser.add_argument(
            f"--{name}", default=default, help=f"{meaning}; default {default}", **number
        )
    parser.add_argument(
        "--against", choices=["naive"], help="measure a plain Hugging Face loop in turn with it"
    )
    parser.add_argument(
        "--random",
        action="store_true",
        help="random weights in the models' shapes and made-up texts, in place of the recipe's; "
        f"always so in the recipe '{_RECIPE}'",
    )
    for one in fields(Texts):
        flag = f"--{one.name.replace('_', '-')}"
        parser.add_argument(flag, help=f"of made-up texts; default {one.default}", **number)
    parser.add_argument(
        "--folder", type=Path, help="where made-up models are kept; default: in the system's own"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    found = parser.parse_intermixed_args(list(arguments))
    options = vars(found)
    lengths = [one.name for one in fields(Texts)]
    wrong = [
        f"--{name.replace('_', '-')}: {options[name]} should be above 0"
        for name in (*_SETTINGS, *lengths)
        if options[name] is not None and options[name] <= 0
    ]
    options["random"] = options["random"] or options["recipe"] == _RECIPE
    if not options["random"]:
        wrong += [
            f"--{name.replace('_', '-')}: the recipe has texts of its own; add --random for others"
            for name in lengths
            if options[name] is not None
        ]
    if wrong:
        raise ConfigError(wrong)
    return options, with_flags(found)


def _bench(options: Mapping[str, Any], overrides: list[str]) -> int:
    world = process_groups.launch_world_size()
    folder = options["folder"] or default_folder()
    config = config_file.load(options["recipe"], overrides)
    if options["json"] is not None:
        check_file("--json", options["json"])
    is_plain = options["against"] == "naive"
    if is_plain and (found := plain_loop.problems(config)):
        raise ConfigError(found)
    if is_plain and world > 1:
        raise ConfigError(["--against naive: the plain loop is one process; start one rank"])
    texts = None
    if options["random"]:
        given = {one.name: options[one.name] for one in fields(Texts)}
        texts = Texts(**{name: value for name, value in given.items() if value is not None})
        _say("making up models and texts")
        overrides = [*overrides, *made_up_overrides(config, texts, folder)]
    work = folder / f"run-{os.environ.get('MASTER_PORT', os.getpid())}"
    overrides = [*overrides, f"run.root={work}", f"checkpoint.root={work / 'checkpoints'}"]
    plan = preflight(
        config_file.load(options["recipe"], overrides),
        world_size=world,
        ranks_per_node=process_groups.launch_ranks_per_node(),
    )
    settings = Settings(plain=is_plain, **{name: options[name] for name in _SETTINGS})
    try:
        measured = measure.run(plan, settings, say=_say)
    finally:
        if process_groups.launch_rank() == 0:
            shutil.rmtree(work, ignore_errors=True)
    if measured is None:
        return 0
    tree = result.summary(plan, settings, measured, texts=texts)
    print(result.table(tree))
    if options["json"] is not None:
        try:
            options["json"].write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            print(f"latentwire bench: {options['json']} is not written: {error}", file=sys.stderr)
            return 1
    return 0


def _say(text: str) -> None:
    if process_groups.launch_rank() == 0:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
