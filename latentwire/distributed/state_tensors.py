"""A unit's state on the host, as tensors cut by rows over the unit's ranks.

Every backend hands its state over in this one form, so that what writes and reads checkpoints knows
nothing of backends: rank r of n has rows r * ceil(rows / n) and following of every tensor, which is
how both DTensor and FSDP2 cut the first dimension.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from latentwire.distributed.groups import Group


class HostBuffers:
    """Host memory that copies are made into, used again by the next copy of the same name.

    Fresh memory costs more than the copy itself: the system hands it out page by page.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, name: str, tensor: Tensor) -> Tensor:
        """``tensor`` in host memory, apart from the original; overwritten by the next copy."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            pinned = tensor.device.type == "cuda"
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            self._buffers[name] = buffer
        return buffer.copy_(tensor.detach())


def own_rows(whole: Tensor, group: Group) -> Tensor:
    """This rank's rows of a whole tensor, as a view; none beyond the last row."""
    share = -(-whole.shape[0] // group.size)
    return whole[share * group.rank :][:share]


def cut_tensor(own: Tensor, shape: Sequence[int], group: Group) -> DTensor:
    """The whole tensor of ``shape`` of which this rank has the rows ``own``, on the host."""
    whole = torch.Size(shape)
    stride = torch.empty(whole, device="meta").stride()
    return DTensor.from_local(
        own, group.host_mesh, [Shard(0)], run_check=False, shape=whole, stride=stride
    )


def empty_tensor(shape: Sequence[int], dtype: torch.dtype, group: Group) -> DTensor:
    """A tensor to be read into, cut like all others."""
    rows = own_rows(torch.empty(torch.Size(shape), device="meta"), group).shape
    return cut_tensor(torch.empty(rows, dtype=dtype), shape, group)


def whole_tensor(tensor: Tensor) -> Tensor:
    """All rows of a cut tensor, on every rank. All members of its group must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
