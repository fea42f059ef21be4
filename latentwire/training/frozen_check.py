"""Frozen means frozen: a run proves that its decoders end as they were loaded."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from latentwire.decoders.fingerprint import changed, combined, fingerprint, of_copies
from latentwire.distributed.assembly import Job
from latentwire.distributed.messages import broadcast_json, gather_json

log = logging.getLogger(__name__)

_NAMED = 3
"""How many changed tensors a message names."""


class FrozenCheck:
    """Remembers every decoder that this rank hosts as it is now."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.before = {name: fingerprint(d.model) for name, d in job.decoders.items()}
        """Hash of every tensor of each decoder, as it was loaded."""

    def verify(self) -> dict[str, str]:
        """Compares every decoder with what it was. All ranks must call.

        Returns:
            Each decoder's hash, of the whole job, on every rank. Where ranks hold a copy of a
            decoder together, it is one over the hashes of their parts in rank order.

        Raises:
            RuntimeError: on every rank alike, naming the decoders, ranks and tensors that differ.
        """
        found: dict[str, dict[str, Any]] = {}
        for name, decoder in self._job.decoders.items():
            now = fingerprint(decoder.model)
            names = changed(self.before[name], now)
            found[name] = {"hash": combined(now), "num": len(names), "names": names[:_NAMED]}
        world = self._job.groups.world
        ranks: list[dict[str, Any]] = broadcast_json(gather_json(found, world), world)
        if problems := _problems(ranks):
            raise RuntimeError("a frozen decoder changed: " + "; ".join(problems))
        hashes = {}
        for spec in self._job.groups.topology.groups:
            parts = [ranks[rank][spec.decoder]["hash"] for rank in spec.ranks]
            hashes[spec.decoder] = of_copies(parts, shard=spec.shard)
        log.info("decoders unchanged: %s", ", ".join(f"{n} {h}" for n, h in hashes.items()))
        return hashes


def _problems(ranks: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for rank, decoders in enumerate(ranks):
        for name, values in decoders.items():
            if values["num"]:
                more = values["num"] - len(values["names"])
                tensors = ", ".join(values["names"]) + (f" and {more} more" if more else "")
                found.append(f"'{name}' on rank {rank} ({tensors})")
    return found
