"""Norms of each objective's gradient in every trained part, pulled back from the wire's ends.

The frozen decoder is passed once for each objective, in the step itself; what is found at the
wire's ends is kept. When the step's backward is over, and before its optimizer moves, it is pulled
back through the decoder's unit and the encoder: through their twins, since the sharded modules
take every backward for a step's. The encoder runs its backward for each decoder and objective, the
forward once more.

The norms are global: of one decoder's unweighted objective over the whole global batch, whatever
the layout. All ranks take part, in one order.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentwire.data.loader import DecoderBatch, GlobalBatch, encoder_batch
from latentwire.diagnostics.gradients import Gradients
from latentwire.distributed.assembly import Job
from latentwire.distributed.exchange import sum_to_owners
from latentwire.distributed.groups import Group
from latentwire.wire.parts import PARTS, SHARED_PARTS

Norms = dict[str, dict[str, dict[str, Tensor]]]
"""By decoder, objective and part."""


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
    key = f"adapter_{name}"
    sums = {objective: _Sums() for objective in objectives}
    with job.units[key].whole_weights() as weights, job.twins[key].lent(weights) as twin:
        named = _by_part(twin)
        trained = [p for part in named.values() for p in part]
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
        wanted = {part: own for part, own in named.items() if part in parts}
        for objective in objectives:
            by_part = sums[objective].by_part(named)
            for part in wanted:
                found[objective][part] = _norm(by_part[part], job.groups.decoder(name))


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
        # With several micro-batches, each forward is repeated rather than all graphs kept.
        graph = _encoded(job, one, kept[0]) if len(kept) == 1 else None
        for spec in job.groups.topology.groups:
            for objective in objectives:
                sums = _Sums()
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
                by_part = sums.by_part(named)
                # Each of these is as large as all weights; none must wait beside the next.
                del sums
                for part in named:
                    norm = _norm(by_part.pop(part), world)
                    if spec.decoder in found:
                        found[spec.decoder][objective][part] = norm


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
    """A sum of gradients, parameter by parameter, over micro-batches."""

    def __init__(self) -> None:
        self._sums: list[Tensor | None] = []

    def add(self, grads: Sequence[Tensor | None]) -> None:
        if not self._sums:
            self._sums = [None] * len(grads)
        for index, grad in enumerate(grads):
            if grad is not None:
                before = self._sums[index]
                self._sums[index] = grad.float() if before is None else before + grad.float()

    def by_part(self, named: dict[str, list[nn.Parameter]]) -> dict[str, Tensor]:
        """The sum flat, by part; zeros where nothing reached a parameter."""
        flat = iter(self._sums)
        found = {}
        for part, parameters in named.items():
            sums = [(parameter, next(flat)) for parameter in parameters]
            found[part] = torch.cat(
                [
                    torch.zeros_like(p, dtype=torch.float32).flatten() if s is None else s.flatten()
                    for p, s in sums
                ]
            )
        return found


def _norm(gradient: Tensor, group: Group) -> Tensor:
    """Norm of the sum over a group of every member's gradient."""
    if group.size > 1:
        # Each member takes the norm of a slice of the sum: half of what an all-reduce would move.
        if missing := -gradient.numel() % group.size:
            gradient = torch.nn.functional.pad(gradient, (0, missing))
        square = sum_to_owners(gradient, group).square().sum()
        dist.all_reduce(square, group=group.handle)
        return square.sqrt()
    return gradient.norm()
