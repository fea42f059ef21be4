"""Steps on disk: atomic publication, finding them again, and which of them stay.

A step is written into ``step-N.tmp``, its manifest last, and renamed; then ``latest`` is replaced.
What has no readable manifest does not exist for discovery, and a published step is never written
again. Everything here is done by one process, rank 0, on plain files.
"""

import logging
import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from latentwire.checkpointing import manifest as manifests
from latentwire.checkpointing.manifest import FormatError, Manifest, read_manifest, size_problems
from latentwire.files import replace_text, sync_folder, write_json

log = logging.getLogger(__name__)

STAGES = ("A", "B")
LATEST = "latest"
_STEP = re.compile(r"step-(\d{8,})")
_LEFTOVERS = (".tmp", ".old")
"""Ends of the names of unfinished steps, and of steps whose removal was begun."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One checkpoint, or a folder with the name of one."""

    path: Path
    stage: str
    number: int

    @property
    def name(self) -> str:
        """As ``latest`` and ``--resume-from`` have it, e.g. ``stageB/step-00000100``."""
        return f"{self.path.parent.name}/{self.path.name}"


def step_at(root: Path, stage: str, number: int) -> Step:
    """The step of a run, whether it exists or not."""
    path = root / f"stage{stage}" / f"step-{number:08d}"
    return Step(path=path, stage=stage, number=number)


def step_named(root: Path, name: str) -> Step | None:
    """The step that ``name`` means (``stageB/step-00000100``, or a path that ends so)."""
    parts = Path(name.rstrip("/")).parts[-2:]
    match = _STEP.fullmatch(parts[1]) if len(parts) == 2 else None
    stages = {f"stage{stage}": stage for stage in STAGES}
    if match is None or parts[0] not in stages:
        return None
    return step_at(root, stages[parts[0]], int(match[1]))


def steps(root: Path) -> list[Step]:
    """Every folder named as a step, in order, whatever its state; links and files are none."""
    found = []
    for stage in STAGES:
        folder = root / f"stage{stage}"
        for path in folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ():
            match = _STEP.fullmatch(path.name)
            if match and path.is_dir() and not path.is_symlink():
                found.append(Step(path=path, stage=stage, number=int(match[1])))
    return sorted(found, key=lambda step: (step.stage, step.number))


def published(root: Path) -> list[Step]:
    """Every step whose manifest can be read and whose files have their sizes, oldest first.

    Stage A comes before Stage B.
    """
    return [step for step in steps(root) if _is_published(step)]


def _is_published(step: Step) -> bool:
    try:
        return not problems(step)
    except OSError as error:
        log.warning("%s cannot be read: %s", step.path, error)
        return False


def problems(step: Step) -> list[str]:
    """What keeps a step from being one, as far as that shows without reading its tensors.

    Raises:
        OSError: it cannot be read now, which says nothing about what is in it.
    """
    try:
        return size_problems(step.path, read_manifest(step.path).files)
    except ValueError as error:
        return [str(error)]


def newest(root: Path, *, strict: bool = False) -> Step | None:
    """The newest published step.

    Args:
        strict: a step that cannot be read now is an OSError; it is passed over otherwise.
    """
    if strict:
        return next((step for step in reversed(steps(root)) if not problems(step)), None)
    found = published(root)
    return found[-1] if found else None


def draft(step: Step) -> Path:
    """A fresh folder to write the step into.

    Raises:
        FileExistsError: the step is there already; nothing overwrites it.
    """
    if step.path.exists() or step.path.is_symlink():
        raise FileExistsError(f"{step.path} exists already")
    folder = step.path.with_suffix(".tmp")
    _remove(folder)
    folder.mkdir(parents=True)
    return folder


def publish(step: Step, folder: Path, manifest: Manifest) -> None:
    """Makes a written draft the step, durably, and ``latest``."""
    write_json(folder / manifests.FILE, manifest.to_tree())
    for inside in sorted({folder / Path(name).parent for name in manifest.files} | {folder}):
        sync_folder(inside)
    os.rename(folder, step.path)
    sync_folder(step.path.parent)
    replace_text(_root(step) / LATEST, f"{step.name}\n")


def read_latest(root: Path) -> Step | None:
    """The step that ``latest`` names, None where it names none that is published."""
    try:
        text = (root / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    step = step_named(root, text)
    return step if step is not None and step.path.is_dir() and _is_published(step) else None


def repair_latest(root: Path, step: Step | None) -> None:
    """Brings ``latest`` in line with the step that a run goes on from."""
    if step is None:
        (root / LATEST).unlink(missing_ok=True)
    elif read_latest(root) != step:
        replace_text(root / LATEST, f"{step.name}\n")


def clean(root: Path) -> list[Path]:
    """Removes what an attempt that ended in the middle of a save or a removal left behind.

    Returns:
        What was removed. A link is removed itself, never what it leads to.
    """
    removed = []
    for stage in STAGES:
        for path in sorted((root / f"stage{stage}").glob("step-*")):
            if path.suffix in _LEFTOVERS and _STEP.fullmatch(path.stem):
                _remove(path)
                removed.append(path)
    return removed


def set_aside(step: Step, why: str) -> Path:
    """Renames a step that a run does not go on from, so that it can come to that number again.

    Args:
        why: one word, which ends the new name.
    """
    for number in range(1, 1000):
        target = step.path.with_name(f"{step.path.name}.{why}-{number}")
        if not target.exists():
            os.rename(step.path, target)
            sync_folder(target.parent)
            return target
    raise FileExistsError(f"{step.path} was set aside a thousand times; remove some")


def retain(
    root: Path, *, keep_last: int, keep_every: int, protected: Collection[Step]
) -> list[Step]:
    """Removes the steps that need not stay; what cannot be removed is a warning.

    Args:
        keep_last: this many of the newest stay; 0 keeps all.
        keep_every: steps whose number this divides stay; 0 keeps none for that.
        protected: stay in any case.

    Returns:
        The steps that were removed.
    """
    removed: list[Step] = []
    if not keep_last:
        return removed
    for step in published(root)[:-keep_last]:
        if step in protected or (keep_every and step.number % keep_every == 0):
            continue
        going = step.path.with_suffix(".old")
        try:
            # Renamed first: a half-removed step must not look like one.
            os.rename(step.path, going)
            _remove(going)
            removed.append(step)
        except OSError as error:
            log.warning("%s could not be removed: %s", step.path, error)
    return removed


def is_foreign(step: Step) -> str:
    """Why a step is of a format that this program does not know; empty where it is not.

    Raises:
        OSError: it cannot be read now.
    """
    try:
        read_manifest(step.path)
    except FormatError as error:
        return str(error)
    except ValueError:
        pass
    return ""


def _root(step: Step) -> Path:
    return step.path.parent.parent


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
