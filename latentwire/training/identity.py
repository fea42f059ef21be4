"""Which frozen decoders a job has, as its checkpoints remember them."""

from collections.abc import Mapping
from typing import Any

from latentwire.decoders.identity import identity
from latentwire.distributed.assembly import Job
from latentwire.distributed.messages import broadcast_json, gather_json
from latentwire.wire.export_files import shape_tree


def identities(job: Job, fingerprints: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The identity of every decoder of the job, the same on every rank. All ranks must call.

    Each is what ``decoders.identity`` says, with ``shape``, which a wire is built from.

    Args:
        fingerprints: of the decoders that this rank hosts.
    """
    own = {
        name: identity(decoder, job.config.decoders[name], fingerprints[name])
        | {"shape": shape_tree(job.shapes[name])}
        for name, decoder in job.decoders.items()
    }
    found: dict[str, Any] = {}
    for said in reversed(gather_json(own, job.groups.world) or []):
        found |= said
    every: dict[str, Any] = broadcast_json(dict(sorted(found.items())), job.groups.world)
    return every
