"""The files of a teacher cache.

Each key has a folder: ``teacher.json`` says to people what it is of, and shards hold distributions.
A shard is one safetensors file, which names its prompts itself, so that a single rename publishes
both; it is never written again. Whoever builds writes shards of its own, under names made of their
content, and whoever reads merges all there are. So builders need know nothing of each other: what
two of them have both computed is there twice, and does no harm.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentwire.decoders.teacher import Form, Kept
from latentwire.files import UNFINISHED, publish

FORMAT = 1
DESCRIPTION = "teacher.json"
DAMAGED = ".damaged"
"""End of the name of a shard that was set aside."""

_KIND = "latentwire teacher"
_NAME = re.compile(r"shard-([0-9a-f]{32})\.safetensors")
_ID_BYTES = 16
_ABANDONED_SECONDS = 3600.0
"""An unfinished file so old belongs to a process that was killed."""
_DTYPES = {
    torch.uint8: "U8",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.float32: "F32",
}
"""As safetensors names them."""


class ShardError(ValueError):
    """A file is not the shard that it should be; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What every shard of a folder holds."""

    key: str
    """Names the decoder and the form; see ``make_layout``."""
    form: Form
    vocabulary: int
    """Logits of a position."""

    def shapes(self, num_prompts: int, num_rows: int) -> dict[str, tuple[torch.dtype, list[int]]]:
        """Type and shape of each tensor of a shard."""
        k = self.form.num_kept(self.vocabulary)
        found = {
            "prompts": (torch.uint8, [num_prompts, _ID_BYTES]),
            "first": (torch.int64, [num_prompts + 1]),
            "log_probs": (self.form.dtype, [num_rows, k]),
        }
        if k < self.vocabulary:
            found["ids"] = (torch.int32, [num_rows, k])
            found["log_tail"] = (torch.float32, [num_rows])
        return found


@dataclass(frozen=True, kw_only=True)
class Shard:
    """An open shard; its tensors are mapped from the file, and read when they are looked at."""

    path: Path
    prompts: tuple[bytes, ...]
    """Of each prompt, ``prompt_id``."""
    first: tuple[int, ...]
    """Its first row; one number more than prompts."""
    kept: Kept
    """A row for each answer token of each prompt, in their order."""
    num_bytes: int


def make_layout(
    form: Form, *, vocabulary: int, decoder: Mapping[str, Any]
) -> tuple[Layout, dict[str, Any]]:
    """The layout of a decoder's cache, and its description.

    The form as it comes out is part of the key: a ``top_k`` beyond the vocabulary is 0.

    Args:
        decoder: everything beside a prompt that its distributions depend on, as JSON holds it.
    """
    k = form.num_kept(vocabulary)
    top_k = 0 if k == vocabulary else k
    form = Form(top_k=top_k, bits=int(form.bits), temperature=float(form.temperature))
    tree = {"format": FORMAT, "form": asdict(form), "vocabulary": vocabulary, **decoder}
    text = json.dumps(tree, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    return Layout(key=key, form=form, vocabulary=vocabulary), tree


def prepare(folder: Path, description: Mapping[str, Any]) -> None:
    """Makes a folder with its description, and removes what killed processes left in it.

    Raises:
        OSError: it cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / DESCRIPTION
    text = json.dumps(description, indent=2, sort_keys=True) + "\n"
    if not path.is_file() or path.read_bytes() != text.encode():
        publish(path, text.encode())
    for path in folder.glob(f"*{UNFINISHED}"):
        with suppress(FileNotFoundError):  # another process was faster
            if time.time() - path.lstat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()


def shard_names(folder: Path) -> list[str]:
    """Names of the files that are named as shards, in order."""
    return sorted(path.name for path in folder.iterdir() if _NAME.fullmatch(path.name))


def write_shard(
    folder: Path, layout: Layout, prompts: Sequence[bytes], lengths: Sequence[int], kept: Kept
) -> str:
    """Publishes a shard; returns its name.

    Args:
        prompts: of each prompt, ``prompt_id``.
        lengths: of each prompt, its answer tokens: rows of ``kept``.

    Raises:
        OSError: it cannot be written; the folder is as it was.
    """
    first = torch.tensor([0, *lengths]).cumsum(0)
    tensors = {
        "prompts": torch.frombuffer(bytearray(b"".join(prompts)), dtype=torch.uint8),
        "first": first,
        "log_probs": kept.log_probs,
    }
    tensors["prompts"] = tensors["prompts"].view(len(prompts), _ID_BYTES)
    if kept.ids is not None and kept.log_tail is not None:
        tensors |= {"ids": kept.ids, "log_tail": kept.log_tail}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    for name, (dtype, shape) in layout.shapes(len(prompts), int(first[-1])).items():
        own = tensors[name]
        assert own.dtype == dtype and list(own.shape) == shape, (name, own.dtype, own.shape)
    checksum = _checksum(tensors)
    said = {"kind": _KIND, "format": str(FORMAT), "key": layout.key, "checksum": checksum}
    name = f"shard-{checksum[:32]}.safetensors"
    publish(folder / name, safetensors.torch.save(tensors, metadata=said))
    return name


def open_shard(path: Path, layout: Layout, *, verify: bool = True) -> Shard:
    """Opens a shard.

    Args:
        verify: every byte is read and compared with the checksum; without, what shows in the
            header and in the index is looked at.

    Raises:
        ShardError: it is damaged, or of something else.
        OSError: it cannot be read.
    """
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    if path.is_symlink() or not path.is_file():
        raise ShardError("it is no plain file")
    num_bytes = path.stat().st_size
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            _check_header(said, layout)
            shapes = {
                name: (part.get_dtype(), list(part.get_shape()))
                for name in sorted(file.keys())
                for part in [file.get_slice(name)]
            }
            _check_shapes(shapes, layout)
            tensors = {name: file.get_tensor(name) for name in shapes}
    except SafetensorError as error:
        raise ShardError(f"it is cut off, or no safetensors file: {error}") from None
    first = tensors["first"].tolist()
    num_rows = len(tensors["log_probs"])
    lengths = [end - start for start, end in zip(first, first[1:], strict=False)]
    if first[0] != 0 or first[-1] != num_rows or min(lengths) < 1:
        raise ShardError("its index does not fit its rows")
    if verify:
        if (found := _checksum(tensors)) != said.get("checksum") or found[:32] != match[1]:
            raise ShardError("its bytes have changed")
        ids = tensors.get("ids")
        if ids is not None and not 0 <= int(ids.min()) <= int(ids.max()) < layout.vocabulary:
            raise ShardError("it names tokens that the vocabulary has not")
    packed = tensors["prompts"].numpy().tobytes()
    return Shard(
        path=path,
        prompts=tuple(packed[at : at + _ID_BYTES] for at in range(0, len(packed), _ID_BYTES)),
        first=tuple(first),
        kept=Kept(
            ids=tensors.get("ids"),
            log_probs=tensors["log_probs"],
            log_tail=tensors.get("log_tail"),
        ),
        num_bytes=num_bytes,
    )


def set_aside(path: Path) -> Path:
    """Renames a shard that is not one, so that nobody looks at it again; a newer one of the same
    name replaces an older one."""
    target = path.with_name(path.name + DAMAGED)
    with suppress(FileNotFoundError):  # another process was faster
        os.replace(path, target)
    return target


def _check_header(said: Mapping[str, str], layout: Layout) -> None:
    if said.get("kind") != _KIND:
        raise ShardError("it is no shard of a teacher cache")
    if said.get("format") != str(FORMAT):
        raise ShardError(f"it has format {said.get('format')}, and this program writes {FORMAT}")
    if said.get("key") != layout.key:
        raise ShardError("it is of another decoder, or in another form")


def _check_shapes(shapes: Mapping[str, tuple[str, list[int]]], layout: Layout) -> None:
    sizes = {name: shape[0] if shape else 0 for name, (_, shape) in shapes.items()}
    num_prompts, num_rows = sizes.get("prompts", 0), sizes.get("log_probs", 0)
    expected = {
        name: (_DTYPES[dtype], shape)
        for name, (dtype, shape) in layout.shapes(num_prompts, num_rows).items()
    }
    if not num_prompts or shapes.keys() != expected.keys():
        raise ShardError(f"it holds {', '.join(shapes) or 'nothing'} in place of what it should")
    for name, is_now in shapes.items():
        if is_now != expected[name]:
            raise ShardError(f"its tensor '{name}' is {is_now}, and should be {expected[name]}")


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
