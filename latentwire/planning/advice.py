"""What to change so that a job fits: each change is tried on the same prediction."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

from latentwire.config import Config, DecoderConfig
from latentwire.distributed import topology
from latentwire.planning.batch import Lengths
from latentwire.planning.memory import Models, RankMemory, predict, shard_of

_LORA_RANK = 16


@dataclass(frozen=True, kw_only=True)
class Change:
    """One key or more to change, and what the largest rank's peak then is."""

    keys: tuple[str, ...]
    """As overrides."""
    peak: int


@dataclass(frozen=True, kw_only=True)
class _Option:
    key: str
    apply: Callable[[Config], Config]


def changes(
    config: Config, models: Models, lengths: Lengths, *, world_size: int, limit: int
) -> tuple[list[Change], Change | None]:
    """Single changes that help, the most helpful first, and the first few that together suffice.

    Args:
        limit: bytes that a rank may hold.

    Returns:
        Every change alone, and a sequence of changes that fits; None where none of ours does.
    """

    def peak(candidate: Config) -> int | None:
        try:
            layout = topology.plan(
                candidate.decoders, placement=candidate.placement, world_size=world_size
            )
        except ValueError:
            return None
        if any(layout.group(n).size % shard_of(d) for n, d in candidate.decoders.items()):
            return None
        if not _divides(candidate, layout):
            return None
        return largest(predict(candidate, models, layout, lengths)).peak.total

    now = peak(config) or 1 << 62
    alone = []
    for option in _options(config):
        found = peak(option.apply(config))
        if found is not None and found < 0.98 * now:
            alone.append(Change(keys=(option.key,), peak=found))
    alone.sort(key=lambda change: change.peak)
    return alone, _together(config, peak, now, limit=limit)


def largest(ranks: list[RankMemory]) -> RankMemory:
    """The ranks that hold most."""
    return max(ranks, key=lambda rank: rank.peak.total)


def _together(
    config: Config, peak: Callable[[Config], int | None], now: int, *, limit: int
) -> Change | None:
    """Changes one upon the other, in the order of what they cost, as long as each helps."""
    keys: dict[str, str] = {}
    for _ in range(8):
        for option in _options(config):
            candidate = option.apply(config)
            found = peak(candidate)
            if found is None or found >= 0.98 * now:
                continue
            name, _, value = option.key.partition("=")
            keys[name] = value
            config, now = candidate, found
            if now <= limit:
                chosen = tuple(f"{name}={value}" for name, value in keys.items())
                return Change(keys=chosen, peak=now)
    return None


def _divides(config: Config, layout: topology.Topology) -> bool:
    return not any(
        topology.batch_problems(
            layout, batch_size=size, accumulation=config.train.accumulation, key=key
        )
        for key, size in config.train.batch_sizes().items()
    )


def _options(config: Config) -> Iterator[_Option]:
    """What may be changed, what costs least first: time, then communication, then quality."""
    encoder, train = config.encoder, config.train
    if not encoder.activation_checkpointing and encoder.kind == "lm":
        yield _Option(
            key="encoder.activation_checkpointing=true",
            apply=lambda c: replace(c, encoder=replace(c.encoder, activation_checkpointing=True)),
        )
    for name, settings in config.decoders.items():
        if not settings.gradient_checkpointing:
            yield _decoder(name, "gradient_checkpointing", True)
    # Whole gradients wait between micro-batches under FSDP2, so more of them do not always help.
    for factor in (2, 3, 4):
        number = train.accumulation * factor
        yield _Option(
            key=f"train.accumulation={number}",
            apply=lambda c, n=number: replace(c, train=replace(c.train, accumulation=n)),
        )
    if config.sharding.backend == "deepspeed":
        yield _Option(
            key="sharding.backend=fsdp",
            apply=lambda c: replace(c, sharding=replace(c.sharding, backend="fsdp")),
        )
    for name, settings in config.decoders.items():
        if settings.precision == "fp32" or (
            settings.precision is None and config.precision == "fp32"
        ):
            yield _decoder(name, "precision", "bf16")
    if any(field.name == "shard" for field in fields(DecoderConfig)):
        for name, settings in config.decoders.items():
            for shard in (2, 4, 8):
                if shard > shard_of(settings) and settings.quantization == "none":
                    yield _decoder(name, "shard", shard)
    for name, settings in config.decoders.items():
        if settings.quantization == "none" and shard_of(settings) == 1:
            yield _decoder(name, "quantization", "nf4")
    for part in (2, 4):
        size = train.batch_size // part
        if train.batch_size % part == 0 and size:
            yield _Option(
                key=f"train.batch_size={size}",
                apply=lambda c, s=size: replace(c, train=replace(c.train, batch_size=s)),
            )
    if encoder.kind == "lm" and not encoder.lora.rank:
        yield _Option(
            key=f"encoder.lora.rank={_LORA_RANK}",
            apply=lambda c: replace(
                c, encoder=replace(c.encoder, lora=replace(c.encoder.lora, rank=_LORA_RANK))
            ),
        )


def _decoder(name: str, key: str, value: object) -> _Option:
    def apply(config: Config) -> Config:
        settings = dataclasses.replace(config.decoders[name], **{key: value})  # type: ignore[arg-type]
        return replace(config, decoders={**config.decoders, name: settings})

    shown = str(value).lower() if isinstance(value, bool) else value
    return _Option(key=f"decoders.{name}.{key}={shown}", apply=apply)
