"""Sums over a large table of embeddings, for its mean and its size."""

import torch
from torch import Tensor


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
