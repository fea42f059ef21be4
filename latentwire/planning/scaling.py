"""Step times on more and more GPUs, computed from operations, bytes and stated link speeds.

Nothing here is measured. A step is the encoder's work, then the slowest decoder's, then what it
waits for of the collectives: all of it, or only what cannot run beside the layers.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latentwire import config_file, strict_yaml
from latentwire.config import Config, ConfigError
from latentwire.distributed.topology import Topology
from latentwire.planning import batch, shapes
from latentwire.planning.batch import StepShape
from latentwire.planning.cost import Device, decoder_flops, encoder_flops
from latentwire.planning.layout import Nodes, lay_out
from latentwire.planning.memory import Models, fullest, predict
from latentwire.planning.traffic import WORLD, Collective, collectives


@dataclass(frozen=True, kw_only=True)
class Point:
    """One world size of one pair."""

    gpus: int
    compute: float
    """Seconds of a step in which the average GPU computes."""
    waiting: float
    """Seconds in which it waits for the slower decoder."""
    hidden: float
    """Seconds of collectives that may run beside the computation."""
    exposed: float
    """Seconds of collectives that the step waits for."""
    world_bytes: float
    """Bytes that a rank sends over the world in a step."""
    group_bytes: float
    """The same over its own group, at most."""
    peak: int
    """Bytes of the fullest rank."""

    @property
    def best(self) -> float:
        """Part of the step in which the average GPU computes, with all hidden that can be."""
        return self.compute / (self._own + self.exposed + max(0.0, self.hidden - self._own))

    @property
    def worst(self) -> float:
        """The same with nothing hidden."""
        return self.compute / (self._own + self.exposed + self.hidden)

    @property
    def _own(self) -> float:
        return self.compute + self.waiting


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two decoders on every world size that can hold them."""

    name: str
    points: tuple[Point, ...]


def seconds(one: Collective, device: Device, *, per_node: int, ranks: Sequence[int]) -> float:
    """How long a collective takes, a step.

    Args:
        ranks: of its group; those of one node share its links to others.
    """
    nodes = {rank // per_node for rank in ranks}
    bandwidth = device.node_bandwidth
    if len(nodes) > 1:
        # Each rank of a node has a link of its own, and a ring passes each node once.
        bandwidth = min(bandwidth, device.link_bandwidth * len(ranks) / len(nodes))
    hops = math.ceil(math.log2(one.ranks)) * (2 if one.kind == "all-reduce" else 1)
    return one.sent / bandwidth + one.calls * hops * device.latency


def measure(
    config: Config,
    models: Models,
    layout: Topology,
    step: StepShape,
    lengths: batch.Lengths,
    device: Device,
    *,
    per_node: int,
) -> Point:
    """One step of one layout."""
    micro = config.train.accumulation
    encoded = batch.encoder_read(config, layout, step, lengths)
    encoder = micro * encoder_flops(config, models.encoder, encoded) / device.flops
    own = {}
    for spec in layout.groups:
        read = batch.decoder_read(config, layout, spec.decoder, step, lengths)
        shape = models.decoders[spec.decoder]
        own[spec] = micro * decoder_flops(config, spec.decoder, shape, read, step) / device.flops
    if layout.placement == "separate":
        slowest = max(own.values())
        mean = sum(cost * spec.size for spec, cost in own.items()) / layout.world_size
    else:
        slowest = mean = sum(own.values())
    found = collectives(config, models, layout, step, lengths)
    everyone = range(layout.world_size)
    times: dict[bool, float] = {True: 0.0, False: 0.0}
    of_groups: dict[str, list[float]] = {}
    for one in found:
        ranks: Sequence[int] = everyone if one.group == WORLD else layout.group(one.group).ranks
        spent = seconds(one, device, per_node=per_node, ranks=ranks[: one.ranks])
        if one.group == WORLD:
            times[one.exposed] += spent
        else:
            by_kind = of_groups.setdefault(one.group, [0.0, 0.0])
            by_kind[one.exposed] += spent
    for exposed in (True, False):
        spent_in = [by_kind[exposed] for by_kind in of_groups.values()]
        together = max if layout.placement == "separate" else sum
        times[exposed] += together(spent_in) if spent_in else 0.0
    sent: dict[str, float] = {}
    for one in found:
        sent[one.group] = sent.get(one.group, 0.0) + one.sent
    return Point(
        gpus=layout.world_size,
        compute=encoder + mean,
        waiting=slowest - mean,
        hidden=times[False],
        exposed=times[True],
        world_bytes=sent.pop(WORLD, 0.0),
        group_bytes=max(sent.values(), default=0.0),
        peak=fullest(predict(config, models, layout, lengths)).peak.total,
    )


def pairs(device: Device, *, gpus_per_node: int) -> tuple[dict[str, Any], list[Pair]]:
    """The packaged study: what it assumes, and every pair's points.

    Raises:
        ConfigError: its numbers of GPUs are no whole nodes of so many.
    """
    path = config_file.PACKAGED / "scaling.yaml"
    study: dict[str, Any] = strict_yaml.load_file(path)
    if any(gpus % min(gpus, gpus_per_node) for gpus in study["gpus"]):
        sizes = ", ".join(map(str, study["gpus"]))
        raise ConfigError(
            [
                f"--gpus-per-node: {gpus_per_node} makes no whole nodes of the table's {sizes} "
                "GPUs; use one of these, or 1"
            ]
        )
    found = []
    for entry in study["pairs"]:
        config = sharded(config_file.load(study["recipe"], entry["overrides"]), entry["shard"])
        models = known(config)
        points = []
        for gpus in study["gpus"]:
            if gpus < len(config.decoders) * entry["shard"]:
                continue
            nodes = Nodes(
                num_nodes=max(1, gpus // gpus_per_node), gpus_per_node=min(gpus, gpus_per_node)
            )
            layout = lay_out(config, nodes)
            # Every group reads the whole batch.
            size = gpus * entry["examples_per_gpu"] // len(config.decoders)
            config = dataclasses.replace(
                config, train=dataclasses.replace(config.train, batch_size=size)
            )
            step = StepShape(batch_size=size, ratio=config.wire.ratio)
            lengths = batch.longest(
                config,
                models.encoder,
                context=study["context_tokens"],
                prompt=study["prompt_tokens"],
            )
            points.append(
                measure(config, models, layout, step, lengths, device, per_node=gpus_per_node)
            )
        found.append(Pair(name=entry["name"], points=tuple(points)))
    return study, found


def known(config: Config) -> Models:
    """The shapes of a configuration whose models are shipped or local.

    Raises:
        ConfigError: one is neither.
    """
    found = {}
    for name, settings in config.decoders.items():
        one = shapes.find(settings.model, ask_hub=False)
        if one.shape is None:
            raise ConfigError([f"decoders.{name}.model: {one.origin}"])
        found[name] = one.shape
    if config.encoder.kind == "byte":
        return Models(encoder=None, decoders=found)
    one = shapes.find(config.encoder.model, ask_hub=False)
    if one.shape is None:
        raise ConfigError([f"encoder.model: {one.origin}"])
    return Models(encoder=one.shape, decoders=found)


def sharded(config: Config, shard: int) -> Config:
    """The configuration with every decoder's weights shared out over ``shard`` ranks."""
    if shard == 1:
        return config
    change: dict[str, Any] = {"shard": shard}
    decoders = {
        name: dataclasses.replace(settings, **change) for name, settings in config.decoders.items()
    }
    return dataclasses.replace(config, decoders=decoders)
