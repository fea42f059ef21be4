"""Atomic publication of a checkpoint step, and finding the newest published one.

A step is written into ``step-N.tmp``, its manifest last, and renamed. What has no readable
manifest does not exist for discovery, and a published step is never written again.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentwire.distributed.groups import Group
from latentwire.distributed.messages import barrier

MANIFEST = "manifest.json"
STAGES = ("A", "B")
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Step:
    """One published checkpoint."""

    path: Path
    stage: str
    number: int


def stage_folder(root: Path, stage: str) -> Path:
    return root / f"stage{stage}"


@contextmanager
def publish(root: Path, *, stage: str, step: int, world: Group) -> Iterator[Path | None]:
    """Yields the folder to write into, and publishes it when the block ends without an error.

    Yields None when the step is already published, on every rank alike. All ranks must enter.
    """
    final = stage_folder(root, stage) / f"step-{step:08d}"
    if _valid(final):
        yield None
        return
    folder = final.with_suffix(".tmp")
    barrier(world)  # nobody may create the folder while another still looks for the final one
    if world.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    barrier(world)  # nobody writes before the folder is fresh
    yield folder
    barrier(world)  # nobody is still writing
    if world.rank == 0:
        _write_manifest(folder, stage=stage, step=step)
        shutil.rmtree(final, ignore_errors=True)  # a damaged one, which no run could resume from
        os.replace(folder, final)
        _sync(final.parent)
    barrier(world)  # nobody goes on before the step can be found


def _write_manifest(folder: Path, *, stage: str, step: int) -> None:
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {"format": FORMAT, "stage": stage, "step": step, "files": files}
    write_json(folder / MANIFEST, manifest)
    _sync(folder)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON durably."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def replace_json(path: Path, value: Any) -> None:
    """Writes JSON durably, and at once for whoever reads the file meanwhile."""
    fresh = path.with_suffix(".tmp")
    write_json(fresh, value)
    os.replace(fresh, path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def published(root: Path) -> list[Step]:
    """Every valid step under a run's checkpoint folder, oldest first, Stage A before Stage B."""
    found = []
    for stage in STAGES:
        for path in sorted(stage_folder(root, stage).glob("step-????????")):
            if _valid(path):
                found.append(Step(path=path, stage=stage, number=int(path.name[5:])))
    return found


def newest(root: Path) -> Step | None:
    """The step a run continues from."""
    steps = published(root)
    return steps[-1] if steps else None


def _valid(path: Path) -> bool:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return False
        return all((path / name).stat().st_size == size for name, size in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
