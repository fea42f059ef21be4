"""Where a run starts: the newest step whose every byte is what was written, or the one asked for.

A damaged newest step is put aside, loudly, and the next older one is used. Anything else that is
wrong is refused, since what it would mean is the user's to say.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from latentwire.checkpointing import commit
from latentwire.checkpointing.commit import Step
from latentwire.checkpointing.manifest import content_problems, read_manifest
from latentwire.checkpointing.state import Place, place_from, place_tree, read_place
from latentwire.config import ConfigError
from latentwire.distributed.groups import Group
from latentwire.training.unreadable import agreed, agreed_first

log = logging.getLogger(__name__)

_SHOWN = 5
"""Problems of a step, and steps to choose from, that a message names."""


def agreed_start(
    root: Path, world: Group, *, wanted: str | None = None, mends: bool = True
) -> tuple[Step, Place] | None:
    """The step to go on from and its place in the run; None where there is none. All must call.

    Every byte of it has been read and compared, by all ranks together.

    Args:
        root: the run's checkpoint folder.
        wanted: the step that the user has asked for.
        mends: leftovers are removed, and steps that the run does not go on from are put aside.

    Raises:
        ConfigError: on every rank alike, naming files and what to do.
        UnreadableError: on every rank alike, where a rank cannot read a file.
    """

    def candidates() -> dict[str, object]:
        for path in commit.clean(root) if mends else ():
            log.info("removed %s, which an earlier attempt left unfinished", path)
        return _candidates(root, commit.steps(root), wanted)

    names = agreed_first(candidates, world, what=root)
    if "problem" in names:
        raise ConfigError([names["problem"]])
    damaged: list[str] = []
    found = None
    for name in names["steps"]:
        step = commit.step_named(root, name)
        assert step is not None
        found = _agreed_verdict(step, world, others=names["others"], must_hold=wanted is not None)
        if found is not None:
            break
        damaged.append(name)
    if damaged and found is None:
        raise ConfigError(
            [f"{root}: every checkpoint is damaged; --fresh --overwrite starts the run anew"]
        )
    if mends:
        start = found[0] if found else None
        agreed_first(lambda: _put_aside(root, damaged, start), world, what=root)
    return found


def _candidates(root: Path, every: Sequence[Step], wanted: str | None) -> dict[str, object]:
    """Names of the steps to look at, best first, or what is wrong with the wish."""
    names = [step.name for step in reversed(every)]
    if wanted is None:
        return {"steps": names, "others": []}
    if problem := wish_problem(root, every, wanted):
        return {"problem": problem}
    step = commit.step_named(root, wanted)
    assert step is not None
    return {"steps": [step.name], "others": [name for name in names if name != step.name]}


def wish_problem(root: Path, every: Sequence[Step], wanted: str) -> str | None:
    """Why ``--resume-from`` cannot be had of a run with the steps ``every``; None where it can."""
    step = commit.step_named(root, wanted)
    is_path = len(Path(wanted).parts) > 2
    if step is not None and is_path and Path(wanted).resolve() != step.path.resolve():
        step = None  # of another run
    if step is not None and step in every:
        return None
    there = ", ".join(step.name for step in list(reversed(every))[:_SHOWN]) or "none"
    return f"--resume-from: '{wanted}' is no checkpoint of this run; there are {there}"


def _agreed_verdict(
    step: Step, world: Group, *, others: Sequence[str], must_hold: bool
) -> tuple[Step, Place] | None:
    """The step with its place if it is whole, None if it is damaged. All must call."""
    refusal = agreed_first(lambda: commit.is_foreign(step), world, what=step.path)
    if refusal:
        raise ConfigError([refusal])
    problems = agreed_problems(step, world)
    if problems:
        _report(step, problems, world)
        if must_hold:
            older = ", ".join(others[:_SHOWN]) or "there is none"
            raise ConfigError([*problems[:_SHOWN], f"--resume-from: choose another step: {older}"])
        return None
    place = agreed_first(lambda: place_tree(read_place(step)), world, what=step.path)
    return step, place_from(place)


def agreed_problems(step: Step, world: Group) -> list[str]:
    """What is wrong with a step, every byte of which all ranks together read. All must call.

    Raises:
        UnreadableError: on every rank alike, where a rank cannot read a file of it.
    """

    def own_problems() -> list[str]:
        try:
            manifest = read_manifest(step.path)
        except ValueError as error:  # rank 0 has just read it
            raise OSError(str(error)) from None
        own = sorted(manifest.files)[world.rank :: world.size]
        return content_problems(step.path, manifest, own)

    found: list[str] = agreed_first(lambda: commit.problems(step), world, what=step.path)
    if not found:
        found = [line for own in agreed(own_problems, world, what=step.path) for line in own]
    return found


def _report(step: Step, problems: Sequence[str], world: Group) -> None:
    if world.rank == 0:
        for problem in problems[:_SHOWN]:
            log.warning("%s", problem)
        if len(problems) > _SHOWN:
            log.warning("and %d more", len(problems) - _SHOWN)
        log.warning("CHECKPOINT %s IS DAMAGED and is not used", step.name)


def _put_aside(root: Path, damaged: Sequence[str], start: Step | None) -> None:
    """Makes way for the steps that the run will come to again."""
    every, later = commit.steps(root), False
    for step in every:
        why = "damaged" if step.name in damaged else "superseded"
        if later or step.name in damaged:
            log.warning("%s is now %s", step.path, commit.set_aside(step, why).name)
        later = later or step == start
    if start is not None and (damaged or every[-1] != start):
        log.warning("GOING ON FROM %s", start.name)
    commit.repair_latest(root, start)
