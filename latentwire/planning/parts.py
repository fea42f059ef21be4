"""Sizes of the trained units, from the configuration and the models' shapes alone."""

from dataclasses import dataclass

from latentwire.config import Config, LoraConfig
from latentwire.distributed.sizes import GATHERED_ALONE
from latentwire.planning.shapes import ModelShape


@dataclass(frozen=True, kw_only=True)
class UnitSize:
    """Parameters of one unit, over all ranks."""

    trained: int
    frozen: int = 0
    """Beside them: the base of a LoRA encoder, or a model whose states are read."""
    num_layers: int = 0
    """Layers that a sharding backend gathers one by one."""
    layer_trained: int = 0
    """Trained parameters of such a layer."""
    layer_frozen: int = 0

    @property
    def total(self) -> int:
        return self.trained + self.frozen

    @property
    def layer(self) -> int:
        """Parameters of a layer that is gathered by itself; 0 where none is."""
        return self.layer_trained + self.layer_frozen

    @property
    def rest(self) -> int:
        """Parameters that are gathered together, all but such layers."""
        return self.total - self.num_layers * self.layer

    @property
    def rest_trained(self) -> int:
        return self.trained - self.num_layers * self.layer_trained


def encoder_size(config: Config, shape: ModelShape | None) -> UnitSize:
    """The shared unit: encoder and refiner.

    Args:
        shape: of the encoder's model; None for ``byte``.
    """
    encoder, wire = config.encoder, config.wire
    width = encoder.byte.width if shape is None else shape.hidden_size
    added = _pooling(config, width) + wire.refiner.layers * _block(wire.d_z)
    if wire.latent_private_len:
        queries = len(config.decoders) * wire.latent_private_len
        added += _query_pooling(width, wire.d_z, wire.heads, queries)
    if shape is None:
        layers = encoder.byte.layers
        return _unit(added + 256 * width + 2 * width, 0, layers, _block(width), 0)
    if encoder.kind == "stq":
        num_read = len(encoder.layers) or shape.num_layers + 1
        added += num_read * (2 * width + width**2)
        outside = shape.backbone - shape.num_layers * shape.layer
        return _unit(added, outside, shape.num_layers, 0, shape.layer)
    outside = shape.backbone - shape.num_layers * shape.layer
    if not encoder.lora.rank:
        return _unit(added + outside, 0, shape.num_layers, shape.layer, 0)
    own = lora_size(shape, encoder.lora)
    return _unit(added, outside, shape.num_layers, own, shape.layer)


def _unit(trained: int, frozen: int, layers: int, own: int, base: int) -> UnitSize:
    """A unit of ``layers`` layers of ``own`` trained and ``base`` frozen parameters, and others."""
    alone = own + base >= GATHERED_ALONE
    return UnitSize(
        trained=trained + layers * own,
        frozen=frozen + layers * base,
        num_layers=layers if alone else 0,
        layer_trained=own if alone else 0,
        layer_frozen=base if alone else 0,
    )


def lora_size(shape: ModelShape, lora: LoraConfig) -> int:
    """Parameters of a LoRA update of one layer."""
    ends = None if lora.targets == "all-linear" else tuple(lora.targets.split(","))
    return sum(
        lora.rank * (num_in + num_out)
        for name, (num_in, num_out) in shape.linears.items()
        if ends is None or name.endswith(ends)
    )


def decoder_size(config: Config, name: str, shape: ModelShape) -> UnitSize:
    """One decoder's unit: adapter, deep prefix, gist head, LoRA; the decoder itself not."""
    adapter, d_z, hidden = config.adapter, config.wire.d_z, shape.hidden_size
    total = 2 * hidden if adapter.use_frame else 0
    if adapter.use_soft_prompt:
        width = int(hidden * adapter.hidden_mult)
        total += 2 * d_z + (d_z * width + width) + (width * hidden + hidden) + 1
    if adapter.use_deep_prefix:
        width = prefix_width(shape)
        total += 2 * d_z + (d_z * 4 * d_z + 4 * d_z) + (4 * d_z * width + width)
        if adapter.deep_prefix_len:
            total += _query_pooling(d_z, d_z, config.wire.heads, adapter.deep_prefix_len)
        if adapter.deep_prefix_len or not adapter.use_soft_prompt:
            total += hidden
    if config.gist.use_gist_head:
        total += _gist(config, hidden)
    lora = config.decoders[name].lora
    if lora.rank:
        total += shape.num_layers * lora_size(shape, lora)
    return UnitSize(trained=total)


def prefix_width(shape: ModelShape) -> int:
    """Numbers that a deep prefix adds to one position: keys and values of all layers."""
    return shape.num_layers * 2 * shape.kv_width


def _pooling(config: Config, width: int) -> int:
    wire = config.wire
    if wire.pooling == "mean":
        return width * wire.d_z + wire.d_z
    if wire.pooling == "block":
        return wire.d_z + 2 * width + _attention(wire.d_z, width)
    return _query_pooling(width, wire.d_z, wire.heads, wire.num_latents)


def _query_pooling(width: int, d_z: int, heads: int, queries: int) -> int:
    return queries * d_z + 2 * width + _attention(d_z, width) + heads


def _attention(width: int, source: int) -> int:
    return 2 * (width**2 + width) + (source * width) + (source * width + width)


def _block(width: int, source: int | None = None) -> int:
    mlp = (width * 4 * width + 4 * width) + (4 * width * width + width)
    return 4 * width + _attention(width, source or width) + mlp


def _gist(config: Config, hidden: int) -> int:
    gist, width = config.gist, config.gist.hidden
    blocks = _block(width, config.wire.d_z) + gist.layers * _block(width)
    return gist.gist_len * width + blocks + 2 * width + (width * hidden + hidden) + 1
