"""A decoder's input embeddings: looking them up, and what is known of them all."""

from collections.abc import Iterator
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor

from latentwire.decoders.copy_ranks import CopyRanks, ShardedTable

_ROWS = 1024


class InputEmbeddings:
    """What a model reads for its tokens.

    Args:
        embed: its embedding module, which may scale the rows of its table.
        ranks: that hold the table together, where it is sharded.
    """

    def __init__(self, embed: Any, ranks: CopyRanks | None) -> None:
        self._embed, self._ranks = embed, ranks
        self._scale = scale_of(embed)
        self._table = None
        if ranks is not None:
            assert self._scale is not None, "others are refused before they load"
            self._table = ShardedTable(embed, ranks, scale=self._scale)

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
            return self._table.lookup(ids)
        found: Tensor = self._embed(ids)
        return found

    @property
    def whole(self) -> Tensor:
        """All of them [vocabulary, hidden]; of a sharded table a copy, gathered."""
        if self._table is not None:
            return self._table.whole()
        weight: Tensor = self._embed.weight
        return weight.detach() if self._scale == 1 else self._looked_up

    @cached_property
    @torch.no_grad()
    def _looked_up(self) -> Tensor:
        """Of a module that does more than choose rows of its weight."""
        return torch.cat(list(self._in_parts()))

    def _in_parts(self) -> Iterator[Tensor]:
        """The embeddings that this rank has, some rows at a time, so that no second table comes
        to be beside a large one."""
        if self._table is not None:
            yield from self._table.own().split(_ROWS)
            return
        for ids in torch.arange(self.vocabulary, device=self.device).split(_ROWS):
            yield self(ids)

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
        sums = reduce(torch.add, map(_sums, self._in_parts())).cpu()
        if self._ranks is not None:
            sums = self._ranks.total(sums)
        square = sums[-1] / (self.vocabulary * self.hidden_size)
        return float(square.sqrt()), (sums[:-1] / self.vocabulary).float()


@torch.no_grad()
def scale_of(embed: Any) -> float | None:
    """What a module multiplies the rows of its table with, in the table's precision; None where
    it does something else with them. Its table may be without memory."""
    weight = embed.weight
    device = torch.device("cpu") if weight.is_meta else weight.device
    row = torch.randn(1, weight.shape[1], generator=torch.Generator().manual_seed(0))
    row = row.to(device, weight.dtype)
    ids = torch.zeros(1, dtype=torch.long, device=device)
    # The class's own code on tables of one row, clear of what sharding hangs on the module.
    own = embed._parameters
    try:
        found = []
        for like in (torch.ones_like(row), row):
            embed._parameters = own | {"weight": like.expand(weight.shape)}
            found.append(type(embed).forward(embed, ids))
    finally:
        embed._parameters = own
    scale = float(found[0][0, 0])
    return scale if torch.equal(found[1], row * scale) else None


def _sums(rows: Tensor) -> Tensor:
    """[rows, hidden] -> [hidden + 1], fp64: the sum of the rows, and of all squares."""
    part = rows.detach().double()
    return torch.cat([part.sum(0), part.square().sum()[None]])
