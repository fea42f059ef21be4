"""Which frozen decoder a wire was trained for, and whether another one is the same."""

import hashlib
import logging
import math
from collections.abc import Mapping
from typing import Any

from torch.distributed.tensor import DTensor

from latentwire.config import DecoderConfig
from latentwire.decoders.fingerprint import of_weights
from latentwire.decoders.frozen import FrozenDecoder

log = logging.getLogger(__name__)

_MEANING = {"shapes": "tensors' names, shapes or types", "parameters": "weights"}

_SIZE_TOLERANCE = 0.02
"""What another precision may change of the embeddings' root mean square."""


def identity(
    decoder: FrozenDecoder, settings: DecoderConfig, fingerprints: Mapping[str, str]
) -> dict[str, Any]:
    """What a decoder is, as JSON holds it.

    ``model`` and ``revision`` say where it came from, ``shapes`` is a hash over names, shapes and
    types of its tensors, ``parameters`` one over their bytes. Null where they depend on the layout
    or the device: ``parameters`` of quantised or sharded decoders, ``shapes`` of both in one.

    Args:
        fingerprints: what ``fingerprint`` found of its model.
    """
    model = decoder.model
    tensors = model.state_dict()
    is_whole = not any(isinstance(tensor, DTensor) for tensor in tensors.values())
    lines = "".join(f"{k} {tuple(t.shape)} {t.dtype}\n" for k, t in sorted(tensors.items()))
    is_plain = settings.quantization == "none"
    return {
        "model": settings.model,
        "revision": getattr(model.config, "_commit_hash", None),
        "shapes": hashlib.sha256(lines.encode()).hexdigest() if is_whole or is_plain else None,
        "parameters": of_weights(model, fingerprints) if is_whole and is_plain else None,
    }


def identity_problems(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    where: str,
    remedy: str = "restore that model, or start a new run.tag",
) -> list[str]:
    """What differs between the decoders of a checkpoint and those that are here.

    Args:
        before: their identities by name.
        where: the checkpoint, for messages.
        remedy: what can be done, for messages.
    """
    found = []
    for name, decoder in now.items():
        known = before.get(name)
        if known is None:
            continue  # the units say so, with more words
        if unsaid := [what for key, what in _MEANING.items() if key not in known]:
            log.warning(
                "decoders.%s: %s is of an earlier version and says nothing of the model's %s: "
                "whether '%s' is the same in that is not known",
                *(name, where, " and ".join(unsaid), decoder["model"]),
            )
        pairs = [(known.get(key), decoder[key], what) for key, what in _MEANING.items()]
        changed = [
            what for was, is_now, what in pairs if None not in (was, is_now) and was != is_now
        ]
        sizes = [each.get("shape", {}).get("embedding_rms") for each in (known, decoder)]
        if None not in sizes and not math.isclose(*sizes, rel_tol=_SIZE_TOLERANCE):
            changed.append("input embeddings' size")
        if changed:
            found.append(
                f"decoders.{name}.model: '{decoder['model']}' is not the decoder that {where} was "
                f"trained with ('{known.get('model')}', revision {known.get('revision')}): its "
                f"{' and its '.join(changed)} changed; {remedy}"
            )
    return found
