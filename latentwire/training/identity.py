"""Which frozen decoders a wire was trained for, and whether a run still has them."""

import hashlib
from collections.abc import Mapping
from typing import Any

from torch.distributed.tensor import DTensor

from latentwire.decoders.fingerprint import combined
from latentwire.distributed.assembly import Job
from latentwire.distributed.messages import broadcast_json, gather_json
from latentwire.wire.exported import shape_tree


def identities(job: Job, fingerprints: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The identity of every decoder of the job, the same on every rank. All ranks must call.

    ``model`` and ``revision`` say where it came from, ``shapes`` is a hash over names, shapes and
    types of its tensors, ``weights`` one over their bytes. Null where they depend on the layout or
    the device: ``weights`` of quantised or sharded decoders, ``shapes`` of those that are both.
    ``shape`` is what a wire is built from.

    Args:
        fingerprints: of the decoders that this rank hosts.
    """
    own: dict[str, Any] = {}
    for name, decoder in job.decoders.items():
        settings, model = job.config.decoders[name], decoder.model
        tensors = model.state_dict()
        is_whole = not any(isinstance(tensor, DTensor) for tensor in tensors.values())
        lines = "".join(f"{k} {tuple(t.shape)} {t.dtype}\n" for k, t in sorted(tensors.items()))
        is_plain = settings.quantization == "none"
        own[name] = {
            "model": settings.model,
            "revision": getattr(model.config, "_commit_hash", None),
            "shapes": hashlib.sha256(lines.encode()).hexdigest() if is_whole or is_plain else None,
            "weights": combined(fingerprints[name]) if is_whole and is_plain else None,
            "shape": shape_tree(job.shapes[name]),
        }
    found: dict[str, Any] = {}
    for said in reversed(gather_json(own, job.groups.world) or []):
        found |= said
    every: dict[str, Any] = broadcast_json(dict(sorted(found.items())), job.groups.world)
    return every


def identity_problems(
    before: Mapping[str, Any], now: Mapping[str, Any], *, where: str
) -> list[str]:
    """What differs between the decoders of a checkpoint and those of this run.

    Args:
        where: the checkpoint, for messages.
    """
    found = []
    for name, decoder in now.items():
        known = before.get(name)
        if known is None:
            continue  # the units say so, with more words
        pairs = [(known.get(key), decoder[key], what) for key, what in _MEANING.items()]
        changed = [
            what for was, is_now, what in pairs if None not in (was, is_now) and was != is_now
        ]
        if changed:
            found.append(
                f"decoders.{name}.model: '{decoder['model']}' is not the decoder that {where} was "
                f"trained with ('{known.get('model')}', revision {known.get('revision')}): its "
                f"{' and its '.join(changed)} changed; restore that model, or start a new run.tag"
            )
    return found


_MEANING = {"shapes": "tensors' names, shapes or types", "weights": "weights"}
