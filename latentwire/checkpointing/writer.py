"""Saving while training goes on: the loop waits for a copy to host memory, a thread does the rest.

One save is in flight at a time. It ends published, or not at all: every rank learns of any rank's
failure by messages of the saving groups, which the training thread never uses.
"""

import errno
import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from latentwire.checkpointing import best, commit, rng, state
from latentwire.checkpointing.commit import Step, step_at
from latentwire.checkpointing.manifest import FileEntry, Manifest, describe_file, versions
from latentwire.checkpointing.shards import PeerError, write_tensors
from latentwire.checkpointing.state import Place, Snapshot, rank_file
from latentwire.config import CheckpointConfig
from latentwire.distributed.groups import Group
from latentwire.distributed.messages import broadcast_json, gather_json
from latentwire.distributed.sharding import ShardedUnit
from latentwire.distributed.state_tensors import HostBuffers
from latentwire.files import write_json, write_text

log = logging.getLogger(__name__)

_GRACE_SECONDS = 30.0
"""How long a run that ends with an error waits for the save in flight."""


class SaveError(OSError):
    """A checkpoint could not be saved, on every rank alike; steps published before are intact."""


class CheckpointWriter:
    """Owner of a run's checkpoints while it trains; all ranks call the same methods in step.

    As a context it is closed at the end; after an error the save in flight gets a while to end.

    Args:
        root: the run's checkpoint folder.
        units: this rank's units, by name.
        groups: the group of each.
        decoders: identity of each frozen decoder, for the manifest.
        config_text: the resolved configuration, as YAML.
        metric: of validation, for ``best.json``.
        failed: called, on whatever thread, when a save has failed and the run shall stop.
    """

    def __init__(
        self,
        root: Path,
        units: Mapping[str, ShardedUnit],
        groups: Mapping[str, Group],
        *,
        world: Group,
        settings: CheckpointConfig,
        decoders: Mapping[str, dict[str, Any]],
        config_text: str,
        metric: str,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        self._root = root
        self._units = units
        self._groups = groups
        self._world = world
        self._settings = settings
        self._decoders = dict(decoders)
        self._config_text = config_text
        self._metric = metric
        self._failed = failed
        self._buffers = {name: HostBuffers() for name in units}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.is_saved = True
        """Whether the last save ended well; known on every rank alike after ``wait``."""

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        elif self._thread is not None:
            # The other ranks may be gone: no agreement, and no endless wait.
            self._thread.join(_GRACE_SECONDS)

    def save(self, place: Place) -> None:
        """Copies the state and has it published as ``place``'s step. All ranks must call.

        Raises:
            SaveError: an earlier save failed, or without ``background`` this one, and the run is
                to stop for that.
        """
        self.wait()
        self.is_saved = True
        copied = state.snapshot(place, self._units, self._groups, self._buffers)
        if self._settings.background:
            self._thread = threading.Thread(
                target=self._run, args=(copied,), name="checkpoint", daemon=True
            )
            self._thread.start()
        else:
            self._run(copied)
            self.wait()

    def wait(self) -> None:
        """Waits for the save in flight; after it, every rank has the same outcome.

        Raises:
            SaveError: it failed, and the run is to stop for that.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is None:
            return
        self.is_saved = False
        if not isinstance(error, SaveError) or self._settings.on_error == "stop":
            raise error

    def close(self) -> None:
        """Waits for the last save, as ``wait``."""
        self.wait()

    def _run(self, copied: Snapshot) -> None:
        """One save; what goes wrong is kept for ``wait``."""
        place = copied.place
        try:
            start = time.perf_counter()
            size = self._publish(copied, step_at(self._root, place.stage, place.step))
            if self._world.rank == 0:
                seconds = time.perf_counter() - start
                log.info(
                    "stage %s: saved step %d (%.1f MB in %.2f s)",
                    *(place.stage, place.step, size / 1e6, seconds),
                )
        except SaveError as error:
            self._error = error
            self._tell(place, error)
        except BaseException as error:  # a dead peer, or a defect: the loop must see it
            self._error = error
            self._failed()

    def _tell(self, place: Place, error: SaveError) -> None:
        stops = self._settings.on_error == "stop"
        if self._world.rank == 0:
            last = commit.newest(self._root)
            kept = (
                "no step was saved before" if last is None else f"the last good one is {last.name}"
            )
            log.error(
                "stage %s: step %d could not be saved (%s); %s; the run %s",
                *(place.stage, place.step, error, kept, "stops" if stops else "goes on"),
            )
        if stops:
            self._failed()

    def _publish(self, copied: Snapshot, step: Step) -> int:
        """Writes and publishes a snapshot; bytes written, on rank 0."""
        world = self._world.for_saving()
        folder = step.path.with_suffix(".tmp")
        is_first = world.rank == 0
        try:
            _agree(world, lambda: commit.draft(step) if is_first else None)
            _agree(world, lambda: self._make_folders(copied, folder))
            _agree(world, lambda: self._write(copied, folder))
            entries = _agree(world, lambda: self._describe(copied, folder))
            manifest = self._manifest(copied, entries) if is_first else None
            _agree(world, lambda: commit.publish(step, folder, manifest) if manifest else None)
        except SaveError:
            if is_first:
                # A full disk needs the room, for the message and for the next attempt.
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if manifest is None:
            return 0
        self._settle(copied.place, step)
        return manifest.num_bytes

    def _make_folders(self, copied: Snapshot, folder: Path) -> None:
        """Before ranks write together: one that then cannot would keep the others waiting."""
        for name in (*copied.components, state.GENERATORS):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def _write(self, copied: Snapshot, folder: Path) -> None:
        for name, component in copied.components.items():
            write_tensors(folder / name, component.tensors, component.group)
        rng.write(rank_file(folder / state.GENERATORS, self._world.rank), copied.generators)
        if self._world.rank == 0:
            write_json(folder / state.TRAINER, state.place_tree(copied.place))
            write_text(folder / state.CONFIG, self._config_text)

    def _describe(self, copied: Snapshot, folder: Path) -> dict[str, Any]:
        """What this rank has written: its units, and its files by path."""
        paths = [rank_file(folder / state.GENERATORS, self._world.rank)]
        for name, component in copied.components.items():
            paths += sorted((folder / name).glob(f"shard-{component.group.rank + 1:05d}-*"))
        if self._world.rank == 0:
            paths += [folder / state.TRAINER, folder / state.CONFIG]
        return {
            "units": {name: list(c.group.ranks) for name, c in copied.components.items()},
            "optimizer_steps": dict(copied.num_steps),
            "files": {str(path.relative_to(folder)): vars(describe_file(path)) for path in paths},
        }

    def _manifest(self, copied: Snapshot, entries: list[dict[str, Any]]) -> Manifest:
        units: dict[str, list[int]] = {}
        optimizer_steps: dict[str, int] = {}
        files: dict[str, FileEntry] = {}
        for entry in entries:
            units |= entry["units"]
            optimizer_steps |= entry["optimizer_steps"]
            files |= {name: FileEntry(**value) for name, value in entry["files"].items()}
        return Manifest(
            stage=copied.place.stage,
            step=copied.place.step,
            units=dict(sorted(units.items())),
            optimizer_steps=dict(sorted(optimizer_steps.items())),
            decoders=self._decoders,
            versions=versions(),
            files=dict(sorted(files.items())),
        )

    def _settle(self, place: Place, step: Step) -> None:
        """What follows a publication; a step is saved whatever becomes of it."""
        found = place.validation.best
        protected = {step}
        try:
            if found is not None:
                protected.add(step_at(self._root, found.stage, found.step))
                if (found.stage, found.step) == (place.stage, place.step):
                    best.publish_best(self._root, found, metric=self._metric)
            removed = commit.retain(
                self._root,
                keep_last=self._settings.keep_last,
                keep_every=self._settings.keep_every,
                protected=protected,
            )
            if removed:
                log.debug("removed %s", ", ".join(old.name for old in removed))
        except OSError as error:
            log.warning("after saving %s: %s", step.name, error)


def _agree(world: Group, work: Callable[[], Any]) -> list[Any]:
    """Runs ``work`` and waits for the other ranks' outcome. All ranks must call.

    Returns:
        Each rank's result on rank 0, nothing elsewhere.

    Raises:
        SaveError: on every rank alike, where any rank had an ``OSError``.
    """
    said: dict[str, Any] = {"value": None, "error": None}
    try:
        value = work()
        said["value"] = value if isinstance(value, dict) else None
    except (OSError, PeerError) as error:
        # A rank that only heard of another's trouble leaves the word to that one.
        number = error.errno if isinstance(error, OSError) else None
        said["error"] = [isinstance(error, PeerError), number or errno.EIO, _words(error)]
    gathered = gather_json(said, world)
    errors = []
    for rank, outcome in enumerate(gathered or ()):
        if outcome["error"] is not None:
            is_echo, number, words = outcome["error"]
            errors.append([is_echo, number, f"rank {rank}: {words}"])
    verdict = broadcast_json(min(errors, key=lambda e: e[0]) if errors else None, world)
    if verdict is not None:
        raise SaveError(verdict[1], verdict[2])
    return [outcome["value"] for outcome in gathered or ()]


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)
