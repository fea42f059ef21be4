"""Loads a frozen causal LM over several ranks; none of them ever holds the whole of it.

The model begins without weights, is sharded by FSDP2, and only then each rank reads its own rows of
every tensor from the model's files.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM

from latentwire.config import ConfigError, DecoderConfig
from latentwire.decoders.copy_ranks import CopyRanks, keep_whole_in_backward
from latentwire.decoders.embeddings import scale_of
from latentwire.decoders.nf4_rows import BLOCK, Nf4Rows, hold_in_nf4, quantised_rows
from latentwire.decoders.weight_files import WeightFiles, has_adapter
from latentwire.wire.backbones import transformer_layers

_NAMED = 3
"""How many tensors a message names."""
_M_MMAP_THRESHOLD = -3
"""As glibc's malloc.h has it."""


def load_sharded(
    name: str, config: DecoderConfig, *, dtype: torch.dtype, device: torch.device, ranks: CopyRanks
) -> Any:
    """A frozen causal LM, sharded over ``ranks`` with its weights. All of them must call.

    Args:
        name: the decoder's name, for messages.
        dtype: of the weights; what is quantised computes in it.

    Raises:
        ConfigError: the model cannot be sharded, or its files do not hold its tensors by name.
    """
    if has_adapter(config.model, revision=config.revision):
        raise _refused(name, config, "comes with a peft adapter")
    try:
        files = WeightFiles(config.model, revision=config.revision)
    except FileNotFoundError as error:
        raise _refused(name, config, str(error)) from None
    if device.type == "cpu":
        _give_back_large_blocks()
    model = _without_weights(name, config, dtype)
    _shard(config, model, ranks)
    with files:
        _Filler(name, config, model, files, dtype=dtype, device=device, ranks=ranks).fill()
    keep_whole_in_backward(model, recomputed=config.gradient_checkpointing)
    return model


def _refused(name: str, config: DecoderConfig, why: str) -> ConfigError:
    return ConfigError([f"decoders.{name}.shard: {config.shard}, but {config.model} {why}; use 1"])


def _without_weights(name: str, config: DecoderConfig, dtype: torch.dtype) -> Any:
    common = {"trust_remote_code": config.trust_remote_code}
    architecture = AutoConfig.from_pretrained(config.model, revision=config.revision, **common)
    with parameters_on_meta():
        model = AutoModelForCausalLM.from_config(
            architecture, dtype=dtype, attn_implementation="sdpa", **common
        )
    if problems := sharding_problems(name, config, model, dtype=dtype):
        raise ConfigError(problems)
    return model.eval().requires_grad_(False)


def sharding_problems(
    name: str, config: DecoderConfig, model: Any, *, dtype: torch.dtype
) -> list[str]:
    """Why a model cannot be sharded, as far as its modules show it.

    Args:
        name: the decoder's name, for messages.
        model: without weights.
        dtype: that the weights shall have.
    """
    found = []
    layers, embed = transformer_layers(model), model.get_input_embeddings()
    if getattr(model.config, "quantization_config", None) is not None:
        found.append("is quantised already, and only weights as they are can be parted")
    if not layers:
        found.append("does not say which of its modules are layers")
    if scale_of(embed) is None:
        found.append(f"looks its tokens up in a {type(embed).__name__} of its own")
    if dtype != torch.float32 and getattr(model, "_keep_in_fp32_modules_strict", None):
        found.append(f"keeps some of its weights in fp32 beside {dtype}")
    problems = [str(_refused(name, config, why)) for why in found]
    if config.quantization == "nf4":
        problems += _nf4_problems(name, config, layers)
    return problems


def _nf4_problems(name: str, config: DecoderConfig, layers: list[nn.Module]) -> list[str]:
    key = f"decoders.{name}.quantization: 'nf4', but"
    linears = [
        (key, module)
        for layer in layers
        for key, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    ]
    if not linears:
        return [f"{key} {config.model} has no linear layer that bitsandbytes quantises; use none"]
    return [
        f"{key} rows of {linear} in {config.model} are no multiple of the {BLOCK} weights that one "
        f"scale covers, so decoders.{name}.shard cannot part them; use none, or shard=1"
        for linear, module in linears
        if module.in_features % BLOCK
    ][:1]


def _give_back_large_blocks() -> None:
    """Has the C library return a freed block of a mebibyte or more to the system at once.

    Left alone, glibc keeps blocks up to 32 MiB once some were freed, and with them twice a rank's
    part of the weights in the gaps that layers leave as they come and go.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, 1 << 20)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules made within it have parameters without memory, but buffers as they make them: those
    that no file holds (the frequencies of rotary positions) have no other source."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            empty = torch.empty_like(param, device="meta")
            param = nn.Parameter(empty, requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _shard(config: DecoderConfig, model: Any, ranks: CopyRanks) -> None:
    """Every layer a unit, the tables of tokens too where they are two, and what is left."""
    layers = transformer_layers(model)
    for layer in layers if config.quantization == "nf4" else ():
        hold_in_nf4(layer)
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [] if head is None or head.weight is embed.weight else [embed, head]
    for unit in (*layers, *tables, model):
        fully_shard(unit, mesh=ranks.mesh, reshard_after_forward=config.reshard)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a parameter stands in a model; a tied one stands in several places."""

    module: nn.Module
    key: str
    name: str


class _Filler:
    """Reads this rank's rows of every parameter, and every buffer that a file holds."""

    def __init__(
        self,
        name: str,
        config: DecoderConfig,
        model: Any,
        files: WeightFiles,
        *,
        dtype: torch.dtype,
        device: torch.device,
        ranks: CopyRanks,
    ) -> None:
        self._name, self._config = name, config
        self._model, self._files = model, files
        self._dtype, self._device, self._ranks = dtype, device, ranks

    def fill(self) -> None:
        by_parameter: dict[int, list[_Place]] = {}
        for prefix, module in self._model.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                name = f"{prefix}.{key}" if prefix else key
                place = _Place(module=module, key=key, name=name)
                by_parameter.setdefault(id(parameter), []).append(place)
        every = [(places, self._sources(places)) for places in by_parameter.values()]
        if missing := [places[0].name for places, sources in every if not sources]:
            more = len(missing) - _NAMED
            names = ", ".join(missing[:_NAMED]) + (f" and {more} more" if more > 0 else "")
            raise self._refused(f"holds no {names} in its files")
        for places, sources in every:
            filled = nn.Parameter(self._read(places[0], sources), requires_grad=False)
            for place in places:
                setattr(place.module, place.key, filled)
        # Of older files some hold rounded frequencies, which nobody reads.
        persistent = self._model.state_dict().keys()
        for prefix, module in self._model.named_modules():
            for key, buffer in module.named_buffers(recurse=False):
                place = _Place(module=module, key=key, name=f"{prefix}.{key}" if prefix else key)
                own = buffer.to(self._device)
                for source in self._sources([place]) if place.name in persistent else ():
                    own.copy_(self._files.whole(source))
                setattr(module, key, own)

    def _sources(self, places: list[_Place]) -> list[str]:
        """Under which names the files hold a tensor, or what it is made of; they may be those of
        the model without its head."""
        found = []
        for place in places:
            name = place.name
            if _is_nf4(place):
                name = name.removesuffix(place.key) + "weight"
            for candidate in (name, name.removeprefix(f"{self._model.base_model_prefix}.")):
                if candidate in self._files:
                    found.append(candidate)
                    break
        return found

    def _read(self, place: _Place, sources: list[str]) -> DTensor:
        """This rank's part of a parameter, from the first source; others must be equal to it."""
        parameter, module = getattr(place.module, place.key), place.module
        assert isinstance(parameter, DTensor)
        num_rows = len(parameter.to_local())
        first = min(-(-len(parameter) // self._ranks.size) * self._ranks.rank, len(parameter))
        shape = tuple(parameter.shape)
        if isinstance(module, Nf4Rows) and _is_nf4(place):
            shape = (module.out_features, module.in_features)
        parts = []
        for source in sources:
            if self._files.shape(source) != shape:
                raise self._refused(
                    f"holds {source} of {self._files.shape(source)} where its configuration says "
                    f"{shape}"
                )
            rows = self._files.rows(source, first, first + num_rows)
            if _is_nf4(place):
                rows = quantised_rows(rows.to(self._device, self._dtype))[place.key]
            # In the host's memory, rows of the same type stay mapped from the file.
            parts.append(rows.to(self._device, parameter.dtype))
        own, *others = parts
        if not all(torch.equal(own, other) for other in others):
            raise self._refused(f"ties {place.name}, and has other values in {sources[-1]}")
        return DTensor.from_local(
            own,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )

    def _refused(self, why: str) -> ConfigError:
        return _refused(self._name, self._config, why)


def _is_nf4(place: _Place) -> bool:
    return isinstance(place.module, Nf4Rows) and place.key in ("weight", "scales")
