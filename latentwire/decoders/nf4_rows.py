"""Linear layers in 4 bits whose rows can be spread over ranks.

bitsandbytes keeps a weight's codes in one column, and its scales outside of the parameters, where
FSDP2 does not see them. Here both are parameters with a row for each row of the weight. A scale
covers 64 weights of one row, so what a rank quantises of its own rows is what the whole weight
would have there.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 64
"""Weights that one scale covers."""


class Nf4Rows(nn.Linear):
    """A linear layer that never changes and is read, and differentiated to its input, as the
    weight that its codes stand for. It begins on the meta device; see ``quantised_rows``.

    Args:
        linear: the layer whose place it takes; ``in_features`` a multiple of ``BLOCK``.
    """

    scales: nn.Parameter

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        rows, width = self.out_features, self.in_features
        codes = torch.empty(rows, width // 2, dtype=torch.uint8, device="meta")
        scales = torch.empty(rows, width // BLOCK, dtype=torch.float32, device="meta")
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = _Nf4.apply(x, self.weight, self.scales, self.bias)
        return output


def quantised_rows(rows: Tensor) -> dict[str, Tensor]:
    """Rows of a weight [n, in_features] as parameters of ``Nf4Rows`` hold them, by name."""
    from bitsandbytes.functional import quantize_4bit

    codes, state = quantize_4bit(rows.contiguous(), blocksize=BLOCK, quant_type="nf4")
    return {"weight": codes.view(len(rows), -1), "scales": state.absmax.view(len(rows), -1)}


def _weight(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    state = QuantState(
        absmax=scales.flatten(),
        shape=torch.Size((codes.shape[0], codes.shape[1] * 2)),
        dtype=dtype,
        blocksize=BLOCK,
        quant_type="nf4",
    )
    weight: Tensor = dequantize_4bit(codes.view(-1, 1), state)
    return weight


class _Nf4(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(codes, scales)
        return F.linear(x, _weight(codes, scales, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        codes, scales = ctx.saved_tensors
        return grad @ _weight(codes, scales, grad.dtype), None, None, None


def hold_in_nf4(layer: nn.Module) -> None:
    """Puts an ``Nf4Rows`` in place of every linear layer within ``layer``."""
    for name, module in list(layer.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, key = name.rpartition(".")
            setattr(layer.get_submodule(parent), key, Nf4Rows(module))
