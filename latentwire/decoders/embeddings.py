"""A decoder's input embeddings: looking them up, and what is known of them all."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from latentwire.decoders.copy_ranks import CopyRanks, ShardedTable


class InputEmbeddings:
    """What a model reads for its tokens.

    Args:
        embed: its embedding module, which may scale the rows of its table.
        ranks: that hold the table together, where it is sharded.
    """

    def __init__(self, embed: Any, ranks: CopyRanks | None) -> None:
        self._embed, self._ranks = embed, ranks
        self._table = None if ranks is None else ShardedTable(embed, ranks)
        self._scale = _scale_of(embed)

    @property
    def hidden_size(self) -> int:
        return int(self._embed.weight.shape[1])

    @property
    def vocabulary(self) -> int:
        """Number of input embeddings."""
        return int(self._embed.weight.shape[0])

    @property
    def device(self) -> torch.device:
        device: torch.device = self._embed.weight.device
        return device

    def __call__(self, ids: Tensor) -> Tensor:
        """[...] token ids -> [..., hidden]."""
        if self._table is not None:
            return self._scaled(self._table.lookup(ids))
        found: Tensor = self._embed(ids)
        return found

    @property
    def whole(self) -> Tensor:
        """All of them [vocabulary, hidden]; of a sharded or scaling module a copy."""
        if self._table is not None:
            return self._scaled(self._table.whole())
        return self._scaled(self._embed.weight.detach())

    def repeated(self, times: int) -> Tensor:
        """[1, times, hidden]: one vector like an embedding, and like none in particular."""
        row = torch.randn(self.hidden_size, generator=torch.Generator().manual_seed(0)) * self.rms
        return row.to(self.device, self._embed.weight.dtype).expand(1, times, -1)

    @property
    def rms(self) -> float:
        """Root mean square."""
        return self._moments[0]

    @property
    def mean(self) -> Tensor:
        """[hidden], fp32 on the host."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[float, Tensor]:
        own = self._embed.weight.detach() if self._table is None else self._table.own()
        sums = table_sums(own).cpu()
        if self._ranks is not None:
            sums = self._ranks.total(sums)
        square = sums[-1] / (self.vocabulary * self.hidden_size)
        mean = (sums[:-1] / self.vocabulary).float()
        return float(square.sqrt()) * abs(self._scale), mean * self._scale

    def _scaled(self, rows: Tensor) -> Tensor:
        return rows if self._scale == 1 else rows * self._scale


@torch.no_grad()
def _scale_of(embed: Any) -> float:
    """What a module multiplies the rows of its table with, in the table's precision."""
    weight = embed.weight
    ones = torch.ones(1, 1, dtype=weight.dtype, device=weight.device).expand(weight.shape)
    ids = torch.zeros(1, dtype=torch.long, device=weight.device)
    return float(functional_call(embed, {"weight": ones}, (ids,))[0, 0])


def table_sums(table: Tensor, *, chunk: int = 1024) -> Tensor:
    """[rows, hidden] -> [hidden + 1], fp64: the sum of the rows, and of all squares.

    In parts, so that no second table comes to be beside a large one.
    """
    sums = torch.zeros(table.shape[1] + 1, dtype=torch.float64, device=table.device)
    for rows in table.split(chunk):
        part = rows.double()
        sums[:-1] += part.sum(0)
        sums[-1] += part.square().sum()
    return sums
