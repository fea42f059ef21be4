"""Building the teacher cache of a run, by all ranks together, before its first step.

Every group computes what its decoder says after each of the training's texts and is not in the
files yet, each rank a part of it. What comes to be is published every while, so an interrupted
build goes on with what is missing. Ranks go through the build in rounds of one forward, and agree
after each: on a signal to stop, and on a rank that could not write.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from latentwire.config import Config
from latentwire.data.example import Example
from latentwire.data.loader import text_batch
from latentwire.decoders import fingerprint, teacher_shards
from latentwire.decoders.teacher import Form, Kept, prompt_id, read_text
from latentwire.decoders.teacher_cache import TeacherCache
from latentwire.decoders.teacher_shards import ShardError, open_shard, write_shard
from latentwire.distributed.assembly import Job
from latentwire.distributed.groups import Group
from latentwire.distributed.messages import broadcast_json, gather_json
from latentwire.training.cache_error import raise_agreed
from latentwire.training.signals import StopRequest

log = logging.getLogger(__name__)

FOLDER = "teachers"
"""In ``checkpoint.root``, where ``teacher.folder`` names no other."""

WHAT = "the teacher cache"
_SHARD_BYTES = 64 << 20
_SHARD_SECONDS = 60.0
"""A rank publishes what it has by then: so much is lost at most."""
_SHOWN = 3
"""Damaged files that are named."""


def cache_folder(config: Config) -> Path:
    """Where the caches of all decoders are."""
    return Path(config.teacher.folder or Path(config.checkpoint.root) / FOLDER)


def build(
    job: Job,
    examples: Sequence[Example],
    *,
    fingerprints: Mapping[str, Mapping[str, str]],
    stop: StopRequest,
) -> str:
    """Gives ``job`` what its decoders say after the text of each of ``examples``. All must call.

    Args:
        examples: the same on every rank; questions on one context stand together.
        fingerprints: of the decoders that this rank hosts.

    Returns:
        Why the run stops, or an empty string: then ``job.teachers`` knows all examples.

    Raises:
        CacheError: on every rank alike.
    """
    world, reason = job.groups.world, ""
    found = []
    # Ranks host equally many decoders: one each, or all of them.
    for name in job.decoders:
        part = _Build(job, name, list(dict.fromkeys(examples)))
        raise_agreed(part.open(fingerprints[name]), world, what=WHAT)
        reason = part.compute(stop)
        raise_agreed(part.close(), world, what=WHAT)
        found.append(part.summary())
        if reason:
            break
        job.teachers[name] = part.cache
    _report(found, world, reason)
    return reason


def warn_of_live(job: Job, when: str) -> None:
    """Says how many examples a cache did not know; counted anew after each stage."""
    for name, cache in job.teachers.items():
        if cache.num_live:
            log.warning(
                "%s: %d times an example was not in the teacher cache of '%s', which has read it",
                when,
                cache.num_live,
                name,
            )
            cache.num_live = 0


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    """What every rank knows of an example's prompt."""

    id: bytes
    prefix: int
    """Tokens up to the end of the slot."""
    suffix: int
    """Tokens after it, the answer included."""
    answer: int


class _Build:
    """The cache of one decoder, on one rank of its group."""

    def __init__(self, job: Job, name: str, examples: list[Example]) -> None:
        self._job, self._name, self._examples = job, name, examples
        self._decoder, self._prompts = job.decoders[name], job.prompts[name]
        self._group = job.groups.decoder(name)
        self._known: list[_Prompt] = []
        self._batches: list[list[int]] = []
        self._num_missing = 0
        self._pending: list[tuple[bytes, Kept]] = []
        self._pending_bytes = 0
        self._last = self._start = time.monotonic()
        self._problem: OSError | None = None
        self._published: list[str] = []
        self.cache: TeacherCache
        """Made by ``open``."""

    def open(self, hashes: Mapping[str, str]) -> OSError | None:
        """Finds out what is there, and what is missing. All ranks of the group must call.

        Returns:
            What keeps this rank, or the group's first, from the files.
        """
        group = self._group
        layout, description = self._layout(hashes)
        folder = cache_folder(self._job.config) / layout.key
        self.cache = TeacherCache(folder, layout, device=self._job.device)
        names: list[str] = []
        if group.rank == 0:
            try:
                teacher_shards.prepare(folder, description)
                names = teacher_shards.shard_names(folder)
            except OSError as error:
                self._problem = error
        names = broadcast_json(names, group)
        for shard in self._whole(folder, names):
            self.cache.add(shard)
        self._known = self._rendered()
        missing: dict[bytes, int] = {}
        for number, prompt in enumerate(self._known):
            if prompt.id not in self.cache:
                missing.setdefault(prompt.id, number)
        self._num_missing = len(missing)
        self._batches = list(self._batched(list(missing.values())))
        return self._problem

    def compute(self, stop: StopRequest) -> str:
        """Reads what is missing, in rounds that all ranks of the world make. All must call.

        Returns:
            Why the run stops, or an empty string.
        """
        world, group = self._job.groups.world, self._group
        own = -(-len(self._batches) // group.size)
        rounds = torch.tensor([own])
        if world.size > 1:
            dist.all_reduce(rounds, op=dist.ReduceOp.MAX, group=world.bookkeeping)
        quiet = True if world.rank or not int(rounds) else None
        self._last = time.monotonic()
        for number in tqdm(range(int(rounds)), desc=f"teacher {self._name}", disable=quiet):
            mine = number * group.size + group.rank
            if mine < len(self._batches):
                self._read(self._batches[mine])
            elif number < own and self._decoder.ranks is not None:
                # Ranks that hold the decoder together read equally often.
                self._read(self._batches[-1], is_kept=False)
            if (
                self._pending_bytes >= _SHARD_BYTES
                or time.monotonic() - self._last > _SHARD_SECONDS
            ):
                self._publish()
            if self._problem is not None:
                stop.cannot_save()
            if reason := stop.agreed(world):
                break
        else:
            reason = stop.agreed(world)
        self._publish()
        return reason

    def close(self) -> OSError | None:
        """Takes in what the group has published. All ranks of the group must call.

        Returns:
            What keeps this rank from the files.
        """
        gathered = gather_json(self._published, self._group)
        names = broadcast_json([name for own in gathered or [] for name in own], self._group)
        for name in names:
            path = self.cache.folder / name
            try:
                self.cache.add(open_shard(path, self.cache.layout, verify=False))
            except ShardError as error:
                self._problem = self._problem or OSError(f"{path} was published, but {error}")
            except OSError as error:
                self._problem = self._problem or error
        pairs = zip(self._examples, self._known, strict=True)
        self.cache.remember((example, prompt.id) for example, prompt in pairs)
        return self._problem

    def summary(self) -> dict[str, Any] | None:
        """For the log; of a group's first rank only."""
        if self._group.rank != 0:
            return None
        cache = self.cache
        return {
            "decoder": self._name,
            "examples": len(self._examples),
            "computed": self._num_missing,
            "left": len({p.id for p in self._known if p.id not in cache}),
            "seconds": time.monotonic() - self._start,
            "bytes": cache.num_bytes,
            "rows": cache.num_rows,
            "folder": str(cache.folder),
        }

    def _layout(self, hashes: Mapping[str, str]) -> tuple[teacher_shards.Layout, dict[str, Any]]:
        config, decoder = self._job.config, self._decoder
        gathered = gather_json(fingerprint.of_weights(decoder.model, hashes), self._group)
        parts = broadcast_json(gathered, self._group)
        shard = 1 if decoder.ranks is None else decoder.ranks.size
        prefix = decoder.constant
        settings = config.teacher
        form = Form(
            top_k=settings.top_k,
            bits=settings.bits,
            temperature=config.objectives.kd_temperature,
        )
        return teacher_shards.make_layout(
            form,
            vocabulary=decoder.num_logits,
            decoder={
                "weights": fingerprint.of_copies(parts, shard=shard),
                "settings": fingerprint.settings_of(decoder.model),
                "prefix": None if prefix is None else fingerprint.of_tensors(prefix.tensors),
                # Quantised layers are other functions on other devices.
                "device": decoder.device.type,
            },
        )

    def _whole(self, folder: Path, names: Sequence[str]) -> Iterator[teacher_shards.Shard]:
        """Those shards whose every byte is as it was written; each rank reads its part of them.

        What is no shard is set aside with a warning; what cannot be read stays, and is a problem.
        """
        group, layout = self._group, self.cache.layout
        bad: list[list[str]] = []
        for name in names[group.rank :: group.size]:
            try:
                open_shard(folder / name, layout)
            except ShardError as error:
                bad.append([name, str(error)])
            except OSError as error:
                self._problem = self._problem or error
        gathered = gather_json(bad, group)
        if gathered is not None:
            bad = [each for own in gathered for each in own]
            try:
                for name, why in bad:
                    teacher_shards.set_aside(folder / name)
                    log.warning("%s: %s; it is set aside, and computed again", folder / name, why)
            except OSError as error:
                self._problem = self._problem or error
        gone = {name for name, _ in broadcast_json(bad, group)}
        for name in names:
            if name in gone:
                continue
            try:
                yield open_shard(folder / name, layout, verify=False)
            except (ShardError, OSError) as error:
                # It was whole a moment ago, as another rank has seen it.
                self._problem = self._problem or OSError(f"{folder / name}: {error}")

    def _rendered(self) -> list[_Prompt]:
        """Every example's prompt, each rank having rendered its part of them."""
        group, size = self._group, self._group.size
        own = []
        for example in self._examples[group.rank :: size]:
            tokens = self._prompts.text(example)
            prefix, suffix = len(tokens.before) + len(tokens.slot), len(tokens.after)
            answer = len(tokens.answer)
            own.append([prompt_id(tokens).hex(), prefix, suffix + answer, answer])
        every = broadcast_json(gather_json(own, group), group)
        found: list[Any] = [None] * len(self._examples)
        for rank, part in enumerate(every):
            found[rank::size] = [
                _Prompt(id=bytes.fromhex(name), prefix=prefix, suffix=suffix, answer=answer)
                for name, prefix, suffix, answer in part
            ]
        return found

    def _batched(self, numbers: list[int]) -> Iterator[list[int]]:
        """Batches of examples alike in length, the longest first, none with more tokens than a
        training step's part of the longest: that much fits."""
        known, config = self._known, self._job.config
        largest = max(config.train.batch_sizes().values())
        size = max(1, largest // config.train.accumulation // self._group.size)
        # As a batch that holds the longest of each is padded.
        longest = max((p.prefix for p in known), default=0)
        tokens = size * (longest + max((p.suffix for p in known), default=0))
        answers = size * max((p.answer for p in known), default=0)
        batch: list[int] = []
        # Sorting keeps questions on one context together, whose prefix is read once.
        for number in sorted(numbers, key=lambda n: known[n].prefix, reverse=True):
            more = [known[n] for n in (*batch, number)]
            width = max(p.prefix for p in more) + max(p.suffix for p in more)
            if batch and (
                len(more) * width > tokens or len(more) * max(p.answer for p in more) > answers
            ):
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch

    def _read(self, batch: Sequence[int], *, is_kept: bool = True) -> None:
        prompts = self._prompts
        tokens = [prompts.text(self._examples[number]) for number in batch]
        logits = read_text(self._decoder, text_batch(tokens, pad=prompts.pad)).logits
        if not is_kept:
            return
        assert logits.shape[-1] == self.cache.layout.vocabulary
        kept = self.cache.form.of(logits).to(torch.device("cpu"))
        rows = [len(each.answer) for each in tokens]
        for number, part in zip(batch, kept.split(rows), strict=True):
            self._pending.append((self._known[number].id, part))
        self._pending_bytes += kept.num_bytes

    def _publish(self) -> None:
        """Writes what is pending; that it could not is for the ranks to agree on."""
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        self._last = time.monotonic()
        if not pending or self._problem is not None:
            return
        kept = Kept.joined([part for _, part in pending])
        names = [name for name, _ in pending]
        rows = [len(part.log_probs) for _, part in pending]
        try:
            self._published.append(
                write_shard(self.cache.folder, self.cache.layout, names, rows, kept)
            )
        except OSError as error:
            self._problem = error


def _report(own: Sequence[dict[str, Any] | None], world: Group, reason: str) -> None:
    """Says on rank 0 what every group has come to. All must call."""
    for ranks in zip(*(gather_json(list(own), world) or []), strict=True):
        for found in ranks:
            if found is None:
                continue
            log.info(
                "teacher cache of '%s': %d examples, %d of them computed in %.0f s%s; %.1f MiB, "
                "%.0f bytes an answer token, in %s",
                found["decoder"],
                found["examples"],
                found["computed"] - found["left"],
                found["seconds"],
                f", and {found['left']} left for the next attempt" if reason else "",
                found["bytes"] / 2**20,
                found["bytes"] / max(1, found["rows"]),
                found["folder"],
            )
