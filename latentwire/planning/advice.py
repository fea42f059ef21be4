"""What to change so that a job fits: each change is tried on the same prediction."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from latentwire import config_checks
from latentwire.config import Config, DecoderConfig
from latentwire.distributed import topology
from latentwire.planning.batch import Lengths
from latentwire.planning.frozen import shard_of
from latentwire.planning.layout import Nodes, lay_out
from latentwire.planning.memory import NO_PARTS, Models, RankMemory, predict

_LORA_RANK = 16
_HELPS = 0.98
"""A change must bring down what is too much to this share of it."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """Keys to change, and what the fullest rank then holds."""

    keys: tuple[str, ...]
    """As overrides."""
    peak: int


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What helps a job that does not fit."""

    alone: tuple[Change, ...]
    """Every change by itself, those that help most first."""
    together: Change | None
    """Changes that fit, of which none can be left out; None where ours do not suffice."""


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One change: keys and their values."""

    values: tuple[tuple[str, Any], ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(f"{key}={_shown(value)}" for key, value in self.values)


class Adviser:
    """Tries changes on one job.

    Args:
        limit: bytes that a rank may hold.
    """

    def __init__(
        self, config: Config, models: Models, lengths: Lengths, *, nodes: Nodes, limit: int
    ) -> None:
        self._config, self._models, self._lengths = config, models, lengths
        self._nodes, self._limit = nodes, limit

    def advise(self) -> Advice:
        """Single changes, and the cheapest of them that fit together."""
        excess = self._excess(self._config)
        assert excess is not None, "the layout itself is valid"
        alone: list[tuple[int, Change]] = []
        for family in self._families(self._config):
            least = self._peak(self._config)
            for step in family:
                changed = applied(self._config, step)
                found = self._excess(changed)
                if found is None or found >= _HELPS * excess:
                    continue
                change = Change(keys=step.keys, peak=self._peak(changed))
                # A larger step of the same that brings nothing more is none.
                if change.peak < least:
                    alone.append((found, change))
                    least = change.peak
        alone.sort(key=lambda pair: (pair[0], pair[1].peak))
        return Advice(alone=tuple(change for _, change in alone), together=self._together(excess))

    def _together(self, excess: int) -> Change | None:
        chosen: list[_Step] = []
        for index in range(len(list(self._families(self._config)))):
            config = self._with(chosen)
            family = list(self._families(config))[index]
            tried = [(self._excess(applied(config, step)), step) for step in family]
            helping = [(e, step) for e, step in tried if e is not None and e < _HELPS * excess]
            if not helping:
                continue
            # The mildest that fits, or else the one that helps most.
            enough = [pair for pair in helping if pair[0] == 0]
            excess, step = enough[0] if enough else min(helping, key=lambda pair: pair[0])
            chosen.append(step)
            if excess == 0:
                break
        if excess:
            return None
        for step in list(chosen[:-1]):
            rest = [one for one in chosen if one is not step]
            if self._excess(self._with(rest)) == 0:
                chosen = rest
        keys = tuple(key for step in chosen for key in step.keys)
        return Change(keys=keys, peak=self._peak(self._with(chosen)))

    def _with(self, steps: Sequence[_Step]) -> Config:
        config = self._config
        for step in steps:
            config = applied(config, step)
        return config

    def _ranks(self, config: Config) -> list[RankMemory] | None:
        """The prediction of a configuration; None where it would be refused."""
        if config_checks.problems(config):
            return None
        try:
            layout = lay_out(config, self._nodes)
        except ValueError:
            return None
        sharded = ((layout.group(name).size, shard_of(d)) for name, d in config.decoders.items())
        if any(size % shard for size, shard in sharded):
            return None
        accumulation = config.train.accumulation
        for key, size in config.train.batch_sizes().items():
            if size % accumulation or topology.batch_problems(
                layout, batch_size=size, accumulation=accumulation, key=key
            ):
                return None
        return predict(config, self._models, layout, self._lengths)

    def _excess(self, config: Config) -> int | None:
        """Bytes that are too much, over the groups."""
        ranks = self._ranks(config)
        if ranks is None:
            return None
        return sum(max(0, rank.peak.total - self._limit) for rank in ranks)

    def _peak(self, config: Config) -> int:
        ranks = self._ranks(config)
        assert ranks is not None
        return max(rank.peak.total for rank in ranks)

    def _families(self, config: Config) -> Iterator[list[_Step]]:
        """What may be changed, each with its values from the mildest on: what is measured first,
        then what costs time, communication, precision, and what is learned."""
        encoder, train, sharding = config.encoder, config.train, config.sharding
        full = self._full_decoders(config)

        def each(key: str, value: Any, names: Sequence[str]) -> list[_Step]:
            values = tuple((f"decoders.{name}.{key}", value) for name in names)
            return [_Step(values=values)] if values else []

        units = "diagnostics.grad_diag_units"
        yield [_one(units, NO_PARTS)] if config.diagnostics.grad_diag_units != NO_PARTS else []
        own = encoder.kind == "lm"
        checkpointing = own and not encoder.activation_checkpointing
        yield [_one("encoder.activation_checkpointing", True)] if checkpointing else []
        plain = [name for name in full if not config.decoders[name].gradient_checkpointing]
        yield each("gradient_checkpointing", True, plain)
        yield [_one("train.accumulation", train.accumulation * factor) for factor in (2, 3, 4, 6)]
        yield [_one("sharding.backend", "fsdp")] if sharding.backend == "deepspeed" else []
        whole = [name for name in full if _is_fp32(config, config.decoders[name])]
        yield each("precision", "bf16", whole)
        together = [name for name in full if config.decoders[name].quantization != "int8"]
        steps: list[_Step] = []
        if any(field.name == "shard" for field in fields(DecoderConfig)):
            for shard in (2, 4, 8, 16):
                names = [n for n in together if shard_of(config.decoders[n]) < shard]
                steps += each("shard", shard, names)
        yield steps
        plain = [name for name in full if config.decoders[name].quantization == "none"]
        yield each("quantization", "nf4", plain)
        sizes = [train.batch_size // part for part in (2, 4) if train.batch_size % part == 0]
        yield [_one("train.batch_size", size) for size in sizes]
        yield [_one("encoder.lora.rank", _LORA_RANK)] if own and not encoder.lora.rank else []

    def _full_decoders(self, config: Config) -> list[str]:
        """Decoders of the ranks that hold too much."""
        ranks = self._ranks(config) or []
        found = [name for rank in ranks if rank.peak.total > self._limit for name in rank.decoders]
        return found or list(config.decoders)


def _one(key: str, value: Any) -> _Step:
    return _Step(values=((key, value),))


def _is_fp32(config: Config, settings: DecoderConfig) -> bool:
    return (settings.precision or config.precision) == "fp32"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def applied(config: Config, step: _Step) -> Config:
    """The configuration with a change."""
    for key, value in step.values:
        config = _set(config, key.split("."), value)
    return config


def _set(node: Any, path: Sequence[str], value: Any) -> Any:
    name, *rest = path
    if isinstance(node, dict):
        return {**node, name: _set(node[name], rest, value)}
    return replace(node, **{name: _set(getattr(node, name), rest, value) if rest else value})
