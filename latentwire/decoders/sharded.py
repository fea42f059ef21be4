"""A frozen causal LM that several ranks hold together, each a part of every weight (FSDP2).

It begins without weights, is sharded, and only then each rank reads its own rows of every tensor
from the model's files: no rank ever holds the whole of it. Layers are gathered one by one as they
run. The input embeddings are not gathered to be looked up in: each rank looks up what it holds.

All ranks of a copy must read as often as each other: every forward, lookup and gathered table is
one of all of them, and so is every backward.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM

from latentwire.config import ConfigError, DecoderConfig
from latentwire.decoders.nf4_rows import BLOCK, Nf4Rows, hold_in_nf4, quantised_rows
from latentwire.decoders.weight_files import WeightFiles, has_adapter
from latentwire.wire.backbones import transformer_layers

# torch 2.13 has renamed them, and warns of the older names.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

_NAMED = 3
"""How many tensors a message names."""


@dataclass(frozen=True, kw_only=True)
class CopyRanks:
    """The ranks that hold one copy of a decoder together."""

    mesh: DeviceMesh
    """One-dimensional, on the decoder's device."""
    bookkeeping: dist.ProcessGroup
    """A gloo group of the same ranks."""

    @property
    def size(self) -> int:
        return self.mesh.size()

    @property
    def rank(self) -> int:
        """This process's place among them."""
        return self.mesh.get_local_rank()

    def all_agree(self, flag: bool) -> bool:
        """Whether ``flag`` is true on every rank. All must call."""
        number = torch.tensor([int(flag)])
        dist.all_reduce(number, op=dist.ReduceOp.MIN, group=self.bookkeeping)
        return bool(number)

    def total(self, values: Tensor) -> Tensor:
        """The sum of every rank's ``values``, on the host. All must call."""
        values = values.cpu()
        dist.all_reduce(values, group=self.bookkeeping)
        return values

    def largest(self, number: int) -> int:
        """The largest of every rank's numbers. All must call."""
        found = torch.tensor([number])
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.bookkeeping)
        return int(found)


class ShardedTable:
    """The input embeddings of a sharded model.

    Args:
        embed: an ``nn.Embedding`` whose weight is sharded by rows.
    """

    def __init__(self, embed: Any, ranks: CopyRanks) -> None:
        self._embed, self._ranks = embed, ranks

    def lookup(self, ids: Tensor) -> Tensor:
        """[...] token ids -> [..., hidden]. All ranks must call, each with ids of its own."""
        weight = self._embed.weight
        if not isinstance(weight, DTensor):  # tied to an output layer that is whole at present
            return F.embedding(ids, weight)
        own, ranks = weight.to_local(), self._ranks
        longest = ranks.largest(ids.numel())
        asked = F.pad(ids.flatten(), (0, longest - ids.numel()))
        every = asked.new_empty(ranks.size * longest)
        group = ranks.mesh.get_group()
        _all_gather(every, asked, group=group)
        place = every - ranks.rank * -(-len(weight) // ranks.size)
        there = (place >= 0) & (place < len(own))
        found = own.new_zeros(len(every), own.shape[1])
        if len(own):
            found = F.embedding(place.clamp(0, len(own) - 1), own)
            found = found.masked_fill(~there[:, None], 0)
        # One rank has the vector and all others zeros, so nothing is rounded.
        mine = found.new_empty(longest, own.shape[1])
        _reduce_scatter(mine, found, group=group)
        return mine[: ids.numel()].view(*ids.shape, -1)

    def whole(self) -> Tensor:
        """All of them [vocabulary, hidden], for as long as the result lives. All must call."""
        weight = self._embed.weight.detach()
        if isinstance(weight, DTensor):
            return weight.full_tensor()
        whole: Tensor = weight.clone()  # the memory of the gathered one is let go of
        return whole

    def own(self) -> Tensor:
        """The rows that this rank holds."""
        weight = self._embed.weight.detach()
        assert isinstance(weight, DTensor), "no forward has run yet"
        return weight.to_local()


def load_sharded(
    name: str, config: DecoderConfig, *, dtype: torch.dtype, device: torch.device, ranks: CopyRanks
) -> Any:
    """A frozen causal LM, sharded over ``ranks`` with its weights. All of them must call.

    Args:
        name: the decoder's name, for messages.
        dtype: of the weights.

    Raises:
        ConfigError: the model cannot be sharded, or its files do not hold its tensors by name.
    """
    if has_adapter(config.model, revision=config.revision):
        raise _refused(name, config, "comes with a peft adapter")
    model = _without_weights(name, config, dtype)
    embed = model.get_input_embeddings()
    if type(embed).forward is not nn.Embedding.forward:
        raise _refused(name, config, f"looks its tokens up in a {type(embed).__name__} of its own")
    _shard(name, config, model, ranks.mesh)
    try:
        files = WeightFiles(config.model, revision=config.revision)
    except FileNotFoundError as error:
        raise _refused(name, config, str(error)) from None
    with files:
        _fill(name, config, model, files, dtype=dtype, device=device, ranks=ranks)
    _keep_whole_in_backward(model, recomputed=config.gradient_checkpointing)
    return model


def _refused(name: str, config: DecoderConfig, why: str) -> ConfigError:
    return ConfigError([f"decoders.{name}.shard: {config.shard}, but {config.model} {why}; use 1"])


def _without_weights(name: str, config: DecoderConfig, dtype: torch.dtype) -> Any:
    common = {"trust_remote_code": config.trust_remote_code}
    architecture = AutoConfig.from_pretrained(config.model, revision=config.revision, **common)
    with _parameters_on_meta():
        model = AutoModelForCausalLM.from_config(
            architecture, dtype=dtype, attn_implementation="sdpa", **common
        )
    if dtype != torch.float32 and getattr(model, "_keep_in_fp32_modules_strict", None):
        raise _refused(name, config, f"keeps some of its weights in fp32 beside {dtype}")
    return model.eval().requires_grad_(False)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules made within it have parameters without memory, but buffers as they make them: those
    that no file holds (the frequencies of rotary positions) have no other source."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, key: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            empty = torch.empty_like(parameter, device="meta")
            parameter = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        register(module, key, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _shard(name: str, config: DecoderConfig, model: Any, mesh: DeviceMesh) -> None:
    """Every layer a unit, the tables of tokens too where they are two, and what is left."""
    layers = transformer_layers(model)
    if not layers:
        raise _refused(name, config, "does not say which of its modules are layers")
    if config.quantization == "nf4":
        bad = [name for layer in layers for name in hold_in_nf4(layer)]
        if bad:
            raise ConfigError(
                [
                    f"decoders.{name}.quantization: 'nf4', but rows of {bad[0]} in {config.model} "
                    f"are no multiple of the {BLOCK} weights that one scale covers, so decoders."
                    f"{name}.shard cannot part them; use none, or shard=1"
                ]
            )
        if not any(isinstance(module, Nf4Rows) for module in model.modules()):
            raise ConfigError(
                [
                    f"decoders.{name}.quantization: 'nf4', but {config.model} has no linear layer "
                    "that bitsandbytes quantises; use none"
                ]
            )
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [] if head is None or head.weight is embed.weight else [embed, head]
    for unit in (*layers, *tables, model):
        fully_shard(unit, mesh=mesh, reshard_after_forward=config.reshard)


def _fill(
    name: str,
    config: DecoderConfig,
    model: Any,
    files: WeightFiles,
    *,
    dtype: torch.dtype,
    device: torch.device,
    ranks: CopyRanks,
) -> None:
    """Reads this rank's rows of every parameter, and every buffer that a file holds."""
    places: dict[int, list[tuple[nn.Module, str, str]]] = {}
    for prefix, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            place = (module, key, f"{prefix}.{key}" if prefix else key)
            places.setdefault(id(parameter), []).append(place)
    stored = {
        at: [f for m, _, alias in same if (f := _stored_name(model, m, alias, files))]
        for at, same in places.items()
    }
    if missing := [same[0][2] for at, same in places.items() if not stored[at]]:
        more = len(missing) - _NAMED
        tail = f" and {more} more" if more > 0 else ""
        names = ", ".join(missing[:_NAMED]) + tail
        raise _refused(name, config, f"holds no {names} in its files, which it makes of others")
    for at, same in places.items():
        module, key, alias = same[0]
        parameter = getattr(module, key)
        assert isinstance(parameter, DTensor)
        own = torch.empty(parameter.to_local().shape, dtype=parameter.dtype, device=device)
        share = -(-parameter.shape[0] // ranks.size)
        start = min(share * ranks.rank, parameter.shape[0])
        is_nf4 = isinstance(module, Nf4Rows) and key in ("weight", "scales")
        shape = (module.out_features, module.in_features) if is_nf4 else tuple(parameter.shape)
        for source in stored[at]:
            if files.shape(source) != shape:
                found = f"holds {source} of {files.shape(source)} where its configuration says"
                raise _refused(name, config, f"{found} {shape}")
            if not len(own):
                continue
            rows = files.rows(source, start, start + len(own))
            if is_nf4:
                rows = quantised_rows(rows.to(device, dtype))[key]
            if source == stored[at][0]:
                own.copy_(rows)
            elif not torch.equal(own, rows.to(own)):
                raise _refused(name, config, f"ties {alias}, and has other values in {source}")
        sharded = DTensor.from_local(
            own,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
        whole = nn.Parameter(sharded, requires_grad=False)
        for module, key, _ in same:
            setattr(module, key, whole)
    for module in model.modules():
        for key, buffer in module.named_buffers(recurse=False):
            setattr(module, key, buffer.to(device))
    for alias, buffer in model.named_buffers():
        if source := _stored_name(model, model, alias, files):
            buffer.copy_(files.whole(source))


def _stored_name(model: Any, module: nn.Module, name: str, files: WeightFiles) -> str | None:
    """Under which name the files hold a tensor of ``module``, or what it is made of; they may be
    of the model without its head."""
    if isinstance(module, Nf4Rows) and name.endswith(".scales"):
        name = f"{name.removesuffix('.scales')}.weight"
    for candidate in (name, name.removeprefix(f"{model.base_model_prefix}.")):
        if candidate in files:
            return candidate
    return None


class _Weight:
    """In place of a gathered weight that backward wants: its memory may be gone by then."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _keep_whole_in_backward(model: nn.Module, *, recomputed: bool) -> None:
    """Has every unit gathered whenever backward reads a weight of it.

    FSDP2 gathers a unit when a gradient comes to its output. In a decoder that reads into a cache,
    gradients come to keys and values too, of a last layer to them alone.

    Args:
        recomputed: layers run again in backward, and keep no weight until then.
    """
    layers = {id(layer) for layer in transformer_layers(model)} if recomputed else set()
    for unit in model.modules():
        if isinstance(unit, FSDPModule):
            run = _gathered_first if id(unit) in layers else _gathered_again
            unit.forward = partial(run, unit, unit.forward)  # type: ignore[attr-defined]


def _gathered_first(unit: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    unit.unshard()
    return forward(*args, **kwargs)


def _gathered_again(unit: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # Inner units are gathered when they run, within hooks of their own.
    weights = {
        parameter.untyped_storage().data_ptr()
        for parameter in unit.parameters()
        if not isinstance(parameter, DTensor)
    }

    def pack(tensor: Tensor) -> Tensor | _Weight:
        return _Weight(tensor) if tensor.untyped_storage().data_ptr() in weights else tensor

    def unpack(kept: Tensor | _Weight) -> Tensor:
        if not isinstance(kept, _Weight):
            return kept
        # Gathered again, a weight has the memory that it had.
        unit.unshard()
        return kept.tensor

    with saved_tensors_hooks(pack, unpack):
        return forward(*args, **kwargs)
