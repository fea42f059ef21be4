"""Tensors of a unit in sharded safetensors files, each rank its own rows.

The engine is torch's distributed checkpoint with its Hugging Face storage: files hold plain
safetensors with the offsets of their rows beside them, so a folder that n ranks wrote is read by
any number, and by any other reader of safetensors file by file.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from latentwire.distributed.groups import Group
from latentwire.distributed.state_tensors import empty_tensor

_LARGEST = 1 << 30
"""Bytes of whole tensors that share a file: a rank holds its part of a file twice as it writes."""

for _name in ("torch.distributed.checkpoint.hf_storage", "torch.distributed.checkpoint.planner"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class PeerError(RuntimeError):
    """Another rank's files could not be written or read."""


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], group: Group) -> None:
    """Writes tensors that are cut over ``group``, durably. All its members must call.

    Args:
        folder: is there; one that could not be made would leave the others waiting.

    Raises:
        OSError: this rank cannot write, with the system's error number.
        PeerError: another rank cannot.
    """
    writer = HuggingFaceStorageWriter(
        str(folder), fqn_to_index_mapping=_file_of(tensors), save_distributed=True
    )
    # All of it is on the host. With a GPU there torch would copy ahead by a stream of this thread,
    # whose device is the first GPU, whichever the process has.
    writer.per_thread_copy_ahead = 0
    _told_apart(
        lambda: dcp.save(dict(tensors), storage_writer=writer, process_group=group.saving), group
    )


def read_tensors(
    folder: Path, group: Group, *, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Tensor]:
    """Reads what ``write_tensors`` wrote, cut over ``group``. All its members must call.

    Raises:
        OSError: this rank cannot read.
        PeerError: another rank cannot.
    """
    found: dict[str, Tensor] = {
        name: empty_tensor(shape, dtype, group)
        for name, (shape, dtype) in stored_shapes(folder).items()
        if wanted(name)
    }
    reader = HuggingFaceStorageReader(str(folder))
    _told_apart(lambda: dcp.load(found, storage_reader=reader, process_group=group.saving), group)
    return found


def stored_shapes(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Whole shape and dtype of every tensor in a folder, by name."""
    stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: (tensor.size, tensor.properties.dtype)
        for name, tensor in sorted(stored.items())
        if isinstance(tensor, TensorStorageMetadata)
    }


def _file_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Which file of a rank each tensor goes into, counted from 1, in order and evenly filled."""
    files, used, kind = {}, 0, None
    number = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        part = name.split(".", 1)[0]
        # Weights and moments lie apart, so that an evaluation opens the weights only.
        if part != kind or (used and used + size > _LARGEST):
            number, used, kind = number + 1, 0, part
        files[name] = number
        used += size
    return files


def _told_apart(work: Callable[[], object], group: Group) -> None:
    """Runs ``work``; an error in it is this rank's own one, or says whose it is."""
    try:
        work()
    except CheckpointException as error:
        failures = {rank: failure[0] for rank, failure in error.failures.items()}
        own = failures.get(group.rank)
        if own is not None:
            raise own from None
        rank, failure = next(iter(failures.items()))
        raise PeerError(f"rank {group.ranks[rank]}: {failure}") from None
