"""``latentwire checkpoint``: what a run has saved, whether it is whole, and how to take it out."""

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from latentwire import strict_yaml
from latentwire.arguments import Parser
from latentwire.checkpointing import commit, export
from latentwire.checkpointing.commit import Step
from latentwire.checkpointing.components import PARTS
from latentwire.checkpointing.manifest import content_problems, read_manifest
from latentwire.checkpointing.state import CONFIG, read_place
from latentwire.config import Config, ConfigError, flatten
from latentwire.config_file import from_tree
from latentwire.training.status import FILES

_SHOWN = 12
"""Lines of a difference that are shown of each kind."""


def main(arguments: Sequence[str]) -> int:
    """Runs one subcommand.

    Returns:
        0 done, 1 damaged or different, 2 bad input.
    """
    parser = Parser(prog="latentwire checkpoint", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    run = "a run's folder, or the folder of its checkpoints"
    step = f"{run}: its latest step; or a step's own folder"
    commands.add_parser("list", help="every step of a run").add_argument("run", help=run)
    one = commands.add_parser("verify", help="read every byte again, and compare")
    one.add_argument("step", help=f"{run}: all its steps; or a step's own folder")
    two = commands.add_parser("diff", help="what differs between two steps")
    two.add_argument("first", help=step)
    two.add_argument("second", help=step)
    out = commands.add_parser("export", help="write the wire alone, for load_wire and the hub")
    out.add_argument("step", help=f"{run}: the step that Stage C reads; or a step's own folder")
    out.add_argument("out", type=Path, help="a folder that does not exist yet")
    try:
        options = parser.parse_args(list(arguments))
        if options.command == "list":
            return _list(_root(options.run))
        if options.command == "verify":
            return _verify(options.step)
        if options.command == "diff":
            return _diff(_step(options.first), _step(options.second))
        return _export(evaluated_step(options.step), options.out)
    except ConfigError as error:
        print("\n".join(f"latentwire checkpoint: {p}" for p in error.problems), file=sys.stderr)
        return 2
    except OSError as error:
        print(f"latentwire checkpoint: {error}", file=sys.stderr)
        return 1


def _root(text: str) -> Path:
    """The folder of a run's checkpoints, from what the user has named."""
    path = Path(text)
    link = path / FILES["checkpoints"]
    root = link.resolve() if link.is_dir() else path
    if not any((root / f"stage{stage}").is_dir() for stage in commit.STAGES):
        raise ConfigError([f"'{text}' holds no checkpoints; give a run's folder, e.g. runs/smoke"])
    return root


def evaluated_step(text: str) -> Step:
    """One step, from what the user has named: a step's folder, or a run and what its Stage C reads,
    the best step by validation or the latest.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    latest = _step(text)
    standing = read_place(latest).validation
    is_named = Path(text).resolve() == latest.path.resolve()
    if is_named or standing.best is None or _config_of(latest).eval.checkpoint == "last":
        return latest
    root = latest.path.parent.parent
    return _whole(commit.step_at(root, standing.best.stage, standing.best.step), of="the best")


def _step(text: str) -> Step:
    """One step, from what the user has named: a step's folder, or a run and its latest step."""
    path = Path(text)
    step = commit.step_named(path.parent.parent, text)
    if step is not None and step.path.is_dir():
        return _whole(step, of="the named")
    root = _root(text)
    every = commit.steps(root)
    if not every:
        raise ConfigError([f"'{text}' has no valid step; latentwire checkpoint verify tells why"])
    # Another one in its place would be another wire.
    return _whole(commit.read_latest(root) or every[-1], of="the latest")


def _whole(step: Step, *, of: str) -> Step:
    if found := commit.problems(step):
        raise ConfigError([*found, f"{of} step is damaged; name another step's folder"])
    return step


def _config_of(step: Step) -> Config:
    """The configuration that a step holds.

    Raises:
        ConfigError: it is damaged.
    """
    if found := content_problems(step.path, read_manifest(step.path), [CONFIG]):
        raise ConfigError(found)
    try:
        return from_tree(strict_yaml.load_file(step.path / CONFIG))
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise ConfigError([f"{step.path / CONFIG}: cannot be read: {error}"]) from None


def _list(root: Path) -> int:
    latest = commit.read_latest(root)
    print(f"{'step':<24} {'samples':>9} {'tokens':>12} {'MB':>9} {'ranks':>5}  state")
    for step in commit.steps(root):
        try:
            problems = commit.problems(step)
        except OSError as error:
            problems = [str(error)]
        if problems:
            print(f"{step.name:<24} {'':>9} {'':>12} {'':>9} {'':>5}  {problems[0]}")
            continue
        manifest, place = read_manifest(step.path), read_place(step)
        best_one = place.validation.best
        marks = ["latest"] if step == latest else []
        if best_one is not None and (best_one.stage, best_one.step) == (step.stage, step.number):
            marks.append(f"best so far ({best_one.score:.4f})")
        ranks = len({rank for members in manifest.units.values() for rank in members})
        print(
            f"{step.name:<24} {place.samples:>9} {place.tokens:>12} "
            f"{manifest.num_bytes / 1e6:>9.1f} {ranks:>5}  {', '.join(marks) or 'valid'}"
        )
    return 0


def _verify(text: str) -> int:
    path = Path(text)
    named = commit.step_named(path.parent.parent, text)
    steps = [named] if named is not None and path.is_dir() else commit.steps(_root(text))
    bad = 0
    for step in steps:
        state = "DAMAGED"
        try:
            problems = commit.problems(step)
            if not problems:
                manifest = read_manifest(step.path)
                problems = content_problems(step.path, manifest, manifest.files)
        except OSError as error:
            state, problems = "UNREADABLE", [str(error)]
        bad += bool(problems)
        print(f"{step.name}: {state if problems else 'whole'}")
        for problem in problems:
            print(f"  {problem}")
    print(f"{len(steps)} steps, {bad} damaged or unreadable")
    return 1 if bad else 0


def _diff(first: Step, second: Step) -> int:
    lines = _config_lines(first, second)
    one, two = read_manifest(first.path), read_manifest(second.path)
    for step, manifest in ((first, one), (second, two)):
        if found := content_problems(step.path, manifest, manifest.files):
            raise ConfigError(found)
    for name in sorted(one.units.keys() | two.units.keys()):
        if name not in one.units or name not in two.units:
            where = first if name in one.units else second
            lines.append(f"{name}: only in {where.path}")
            continue
        for part in PARTS:
            lines += _tensor_lines(name, part, first, second)
    print(f"{first.path}\n{second.path}")
    print("\n".join(lines) if lines else "no difference")
    return 1 if lines else 0


def _config_lines(first: Step, second: Step) -> list[str]:
    old, new = (flatten(_config_of(step)) for step in (first, second))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [f"config {key}: {old.get(key)} | {new.get(key)}" for key in keys[:_SHOWN]]


def _tensor_lines(component: str, part: str, first: Step, second: Step) -> list[str]:
    one, two = (export.whole_tensors(step.path / component, part=part) for step in (first, second))
    lines = [f"{component} {part} {name}: in one only" for name in sorted(one.keys() ^ two.keys())]
    largest, where, num = 0.0, "", 0
    for name in one.keys() & two.keys():
        if one[name].shape != two[name].shape:
            shapes = f"{tuple(one[name].shape)} | {tuple(two[name].shape)}"
            lines.append(f"{component} {part} {name}: {shapes}")
            continue
        if one[name].equal(two[name]):
            continue
        num += 1
        size = float((one[name].double() - two[name].double()).abs().max())
        if size >= largest:
            largest, where = size, name
    if num:
        which = f"{num} of {len(one)} tensors differ, most by {largest:.3e} ({where})"
        lines.append(f"{component} {part}: {which}")
    return lines[:_SHOWN]


def _export(step: Step, out: Path) -> int:
    num = export.export_step(step, out)
    print(f"{step.path} -> {out}: {num} trained parameters")
    return 0
