"""Layers that bitsandbytes has quantised, as a frozen decoder needs them: exact and differentiable.

Left alone, some of them take another path on the CPU as soon as a model is in evaluation mode, as a
frozen decoder always is. What is said here about bitsandbytes was found with 0.50.2.
"""

import logging
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def prepare_quantised(model: nn.Module) -> int:
    """Readies every quantised linear layer of ``model`` for reading with gradients to its inputs.

    Returns:
        How many layers there are.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    # It says at every forward that activations pass through float16, which is how LLM.int8() works.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    num_layers = 0
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # On CPUs with AVX512-BF16 the first forward in evaluation mode that needs no gradient
            # repacks the weights in place for a kernel without a backward. The decoder would no
            # longer be the one that was loaded, and its next reading of a wire would fail.
            module.support_avx512bf16_for_cpu = False
            num_layers += 1
        elif isinstance(module, Linear8bitLt):
            module.forward = partial(_int8_forward, module)
            num_layers += 1
    return num_layers


def dequantised(module: Any, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] that a quantised linear layer stands for."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear8bitLt

    if isinstance(module, Linear8bitLt):
        # Its first forward on a GPU moves the row scales from the weight to the layer's state.
        scales = module.weight.SCB if module.state.SCB is None else module.state.SCB
        return module.weight.to(dtype) * (scales / 127)[:, None].to(dtype)
    weight: Tensor = dequantize_4bit(module.weight.data, module.weight.quant_state)
    return weight.to(dtype)


def _int8_forward(module: Any, x: Tensor) -> Tensor:
    output: Tensor = _Int8Linear.apply(x, module)
    return output


class _Int8Linear(torch.autograd.Function):
    """``x W^T + b`` through int8 weights that never change.

    On a GPU the forward is LLM.int8() (arXiv 2208.07339), whose activations are int8 too, but for
    outliers. Its kernels on the CPU are slower than what they save: the quickstart's decoder took
    0.10 to 0.28 s where fp32 took 0.07 s. So there the weights alone are int8, and the product is
    one of floats. The backward is the same on both: the product with the dequantised weight.

    bitsandbytes' own functions do this too, but choose between the two by ``training``, and keep
    each layer's input for a gradient of the weight that is never asked for. A recomputed layer
    (``decoders.<name>.gradient_checkpointing``) would then save no memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Any) -> Tensor:
        ctx.module = module
        if x.device.type != "cpu":
            output: Tensor = type(module).forward(module, x)
            return output
        bias = None if module.bias is None else module.bias.to(x.dtype)
        return F.linear(x, dequantised(module, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad @ dequantised(ctx.module, grad.dtype), None
