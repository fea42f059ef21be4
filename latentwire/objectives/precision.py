"""The precision objectives are taken in."""

import torch
import torch.nn.functional as F
from torch import Tensor


def in_float(values: Tensor) -> Tensor:
    """``values`` in fp32, or in fp64 where they have it already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def cosine(left: Tensor, right: Tensor) -> Tensor:
    """Cosine over the last axis, in fp32; 0 where a vector is zero."""
    return F.cosine_similarity(in_float(left), in_float(right), dim=-1)


def unit(vectors: Tensor) -> Tensor:
    """Each vector of the last axis at length 1, in fp32; a zero vector stays zero."""
    return F.normalize(in_float(vectors), dim=-1)
