"""Norms of each objective's gradient in every trained part, pulled back from the wire's ends.

The frozen decoder is passed once for each objective, in the step itself; what is found at the
wire's ends is kept. When the step's backward is over, and before its optimizer moves, it is pulled
back through the decoder's unit and the encoder: through their twins, since the sharded modules
take every backward for a step's. The encoder runs its backward for each decoder and objective, the
forward once more.

The norms are global: of one decoder's unweighted objective over the whole global batch, whatever
the layout. All ranks take part, in one order.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentwire.data.loader import DecoderBatch, GlobalBatch, encoder_batch
from latentwire.diagnostics.gradients import Gradients
from latentwire.distributed.assembly import Job
from latentwire.distributed.exchange import sum_to_owners
from latentwire.distributed.groups import Group
from latentwire.wire.parts import PARTS, SHARED_PARTS, unit_name

Norms = dict[str, dict[str, dict[str, Tensor]]]
"""By decoder, objective and part."""
_Key = TypeVar("_Key", bound=Hashable)


@dataclass(kw_only=True)
class Reading:
    """How one decoder read a micro-batch."""

    own: DecoderBatch
    latents: Tensor
    """Every wire of the micro-batch, as the exchange gave it."""
    gradients: dict[str, Gradients]
    """Each objective's, at the outputs of the decoder's unit."""
    random: "RandomState"
    """Before the unit's forward."""


@dataclass(kw_only=True)
class MicroBatch:
    """What a step kept of one of its micro-batches."""

    batch: GlobalBatch
    random: "RandomState"
    """Before the encoder's forward."""
    readings: dict[str, Reading] = field(default_factory=dict)
    """By decoder, of those this rank hosts."""


class RandomState:
    """The state of torch's generators, so that dropout repeats itself in a twin."""

    def __init__(self, device: torch.device) -> None:
        self._devices = [device] if device.type == "cuda" else []
        self._cpu = torch.get_rng_state()
        self._others = [torch.cuda.get_rng_state(one) for one in self._devices]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Within it, generators go on from this state; afterwards as if nothing was drawn."""
        with torch.random.fork_rng(devices=self._devices):
            torch.set_rng_state(self._cpu)
            for device, state in zip(self._devices, self._others, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


def part_norms(
    job: Job, kept: Sequence[MicroBatch], objectives: Sequence[str], parts: Sequence[str]
) -> Norms:
    """Every objective's gradient norms, of the decoders this rank hosts. All ranks must call,
    between the step's backward and its optimizer.

    Args:
        objectives: measured by all ranks, in one order.
        parts: whose norms are wanted, of ``wire.parts``; those that are not there are left out.
    """
    found: Norms = {name: {key: {} for key in objectives} for name in job.decoders}
    if not objectives:
        return found  # none of those that are asked for is there in this step
    at_latents: dict[tuple[str, str], list[Tensor]] = {}
    for name in job.decoders:
        _decoder_unit(job, name, kept, objectives, parts, found[name], at_latents)
    shared = [part for part in SHARED_PARTS if part in parts]
    if shared:
        _shared_unit(job, kept, objectives, shared, found, at_latents)
    return found


def _decoder_unit(
    job: Job,
    name: str,
    kept: Sequence[MicroBatch],
    objectives: Sequence[str],
    parts: Sequence[str],
    found: dict[str, dict[str, Tensor]],
    at_latents: dict[tuple[str, str], list[Tensor]],
) -> None:
    """Fills in the norms of one decoder's own parts, and the gradients at the latents."""
    key = unit_name(name)
    with job.units[key].whole_weights() as weights, job.twins[key].lent(weights) as twin:
        named = _by_part(twin)
        trained = [p for part in named.values() for p in part]
        group = job.groups.decoder(name)
        sums = {objective: _Sums(named, group) for objective in objectives}
        dtype = next(twin.parameters()).dtype
        for micro in kept:
            reading = micro.readings[name]
            latents = reading.latents.detach().to(dtype).requires_grad_()
            with reading.random.restored():
                outputs = job.inject(name, latents, reading.own, unit=twin).outputs
            for objective in objectives:
                sources, grads = _there(outputs, reading.gradients[objective])
                own: Sequence[Tensor | None] = [None] * (1 + len(trained))
                if sources:
                    own = torch.autograd.grad(
                        sources, [latents, *trained], grads, retain_graph=True, allow_unused=True
                    )
                at = torch.zeros_like(latents) if own[0] is None else own[0]
                at_latents.setdefault((name, objective), []).append(at / job.scale(name))
                sums[objective].add(own[1:])
        squares = {objective: sums[objective].own_squares() for objective in objectives}
        for objective, norms in _norms(squares, group).items():
            found[objective] |= {part: norm for part, norm in norms.items() if part in parts}


def _shared_unit(
    job: Job,
    kept: Sequence[MicroBatch],
    objectives: Sequence[str],
    parts: Sequence[str],
    found: Norms,
    at_latents: dict[tuple[str, str], list[Tensor]],
) -> None:
    """Fills in the norms of the parts that all decoders share."""
    world = job.groups.world
    with job.units["encoder"].whole_weights() as weights, job.twins["encoder"].lent(weights) as one:
        named = {part: own for part, own in _by_part(one).items() if part in parts}
        trained = [p for part in named.values() for p in part]
        if not trained or not objectives:
            return
        sums = _Sums(named, world)
        squares: dict[tuple[str, str], dict[str, Tensor]] = {}
        # With several micro-batches, each forward is repeated rather than all graphs kept.
        graph = _encoded(job, one, kept[0]) if len(kept) == 1 else None
        for spec in job.groups.topology.groups:
            for objective in objectives:
                sums.clear()
                for index, micro in enumerate(kept):
                    latents = _encoded(job, one, micro) if graph is None else graph
                    shape = (latents.shape[0] * world.size, *latents.shape[1:])
                    own = at_latents.get((spec.decoder, objective))
                    at = latents.new_zeros(shape) if own is None else own[index].to(latents.dtype)
                    at = sum_to_owners(at, world)
                    sums.add(
                        torch.autograd.grad(
                            latents, trained, at, retain_graph=graph is not None, allow_unused=True
                        )
                    )
                squares[spec.decoder, objective] = sums.own_squares()
        for (decoder, objective), norms in _norms(squares, world).items():
            if decoder in found:
                found[decoder][objective] |= norms


def _encoded(job: Job, twin: nn.Module, micro: MicroBatch) -> Tensor:
    """This rank's own latents of a micro-batch, once more."""
    world = job.groups.world
    texts = encoder_batch(micro.batch, job.tokenizer, rank=world.rank, world_size=world.size)
    with micro.random.restored():
        latents: Tensor = twin(texts.to(job.device))
    return latents


def _there(outputs: Sequence[Tensor], gradients: Gradients) -> tuple[list[Tensor], list[Tensor]]:
    pairs = [
        (output, grad)
        for output, grad in zip(outputs, gradients, strict=True)
        if grad is not None and output.requires_grad
    ]
    return [output for output, _ in pairs], [grad for _, grad in pairs]


def _by_part(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trained parameters by part, in one order on all ranks."""
    named: dict[str, list[nn.Parameter]] = {part: [] for part in PARTS}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            named[module.part_of(name)].append(parameter)  # type: ignore[operator]
    return {part: own for part, own in named.items() if own}


class _Sums:
    """Sums of gradients over micro-batches, flat and in one buffer for all parts: what is as large
    as an encoder is allocated once, whatever the number of objectives."""

    def __init__(self, named: Mapping[str, Sequence[nn.Parameter]], group: Group) -> None:
        self._group = group
        lengths = {part: sum(p.numel() for p in own) for part, own in named.items()}
        # Every member takes the norm of a slice of the sum, so slices are of one length.
        padded = [length + -length % group.size for length in lengths.values()]
        device = next(p.device for own in named.values() for p in own)
        self._buffer = torch.zeros(sum(padded), device=device)
        self._parts = dict(zip(named, self._buffer.split(padded), strict=True))
        self._views = [
            view
            for part, own in named.items()
            for view in self._parts[part][: lengths[part]].split([p.numel() for p in own])
        ]

    def clear(self) -> None:
        self._buffer.zero_()

    def add(self, grads: Sequence[Tensor | None]) -> None:
        for view, grad in zip(self._views, grads, strict=True):
            if grad is not None:
                view.add_(grad.flatten())

    def own_squares(self) -> dict[str, Tensor]:
        """This member's share of each part's squared norm, of the sum over the group. All its
        members must call."""
        return {
            part: (sum_to_owners(flat, self._group) if self._group.size > 1 else flat)
            .square()
            .sum()
            for part, flat in self._parts.items()
        }


def _norms(
    squares: Mapping[_Key, Mapping[str, Tensor]], group: Group
) -> dict[_Key, dict[str, Tensor]]:
    """Norms out of every member's shares of their squares, by key and part."""
    flat = torch.stack([square for by_part in squares.values() for square in by_part.values()])
    if group.size > 1:
        dist.all_reduce(flat, group=group.handle)
    norms = iter(flat.sqrt().unbind())
    return {key: {part: next(norms) for part in by_part} for key, by_part in squares.items()}
