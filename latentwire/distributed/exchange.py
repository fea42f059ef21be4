"""The wire between ranks: each text is encoded once, and its latents go to all who read them.

Forward, an all-gather of [rows, num_latents, d_z]; backward, a reduce-scatter of the gradients,
so that the owner of a text gets the summed gradient of every decoder and runs the encoder's
backward once. What crosses is kilobytes per text.
"""

from typing import Any

import torch
from torch import Tensor

from latentwire.collectives import all_gather, reduce_scatter
from latentwire.distributed.groups import Group


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latents: Tensor, group: Group) -> Tensor:
        ctx.group = group
        gathered = latents.new_empty(group.size * latents.shape[0], *latents.shape[1:])
        all_gather(gathered, latents.contiguous(), group=group.handle)
        return gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return sum_to_owners(grad, ctx.group), None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.factor, None


def exchange(latents: Tensor, world: Group) -> Tensor:
    """This rank's latents to everybody's.

    Args:
        latents: [rows, num_latents, d_z], equal shapes on every rank.

    Returns:
        [world size * rows, num_latents, d_z]: rank r's rows stand at r * rows.
    """
    if world.size == 1:
        return latents
    gathered: Tensor = _Exchange.apply(latents, world)
    return gathered


def sum_to_owners(gradient: Tensor, world: Group) -> Tensor:
    """What the exchange's own backward does, for a gradient query: every rank's gradient at all
    latents [world size * rows, ...] to the sum at this rank's own [rows, ...]. All must call."""
    if world.size == 1:
        return gradient
    own = gradient.new_empty(gradient.shape[0] // world.size, *gradient.shape[1:])
    reduce_scatter(own, gradient.contiguous(), group=world.handle)
    return own


def scale_gradient(value: Tensor, factor: float) -> Tensor:
    """``value``, with its gradient multiplied by ``factor``.

    Sharding backends average gradients over their ranks. A decoder's loss therefore carries its
    group's size, and the gradient that enters the exchange the world's size over it: both
    averages then come out as the sum over the examples.
    """
    if factor == 1.0:
        return value
    scaled: Tensor = _ScaleGradient.apply(value, factor)
    return scaled
