"""A plan for people."""

from collections.abc import Mapping, Sequence

from latentwire.config import Config
from latentwire.planning import state
from latentwire.planning.advice import Advice, Change
from latentwire.planning.batch import Lengths
from latentwire.planning.memory import GIB, ROWS, Models, RankMemory, unit_sizes
from latentwire.planning.scaling import Pair
from latentwire.planning.traffic import WORLD, Collective


def gib(size: float) -> str:
    return f"{size / GIB:.1f}"


def models_table(config: Config, models: Models, origins: Mapping[str, str]) -> list[str]:
    """The models and what is trained, a line each."""
    lines = []
    if models.encoder is not None:
        number = models.encoder.backbone
        lines.append(("encoder", number, f"{config.encoder.model}, {origins['encoder']}"))
    for name, shape in models.decoders.items():
        settings = config.decoders[name]
        lines.append((name, shape.num_parameters, f"{settings.model}, {origins[name]}"))
    for name, unit in unit_sizes(config, models).items():
        lines.append((name, unit.trained, "trained"))
    width = max(len(name) for name, _, _ in lines)
    return [f"  {name:<{width}}  {number:>15,}  {what}" for name, number, what in lines]


def setting_lines(config: Config, lengths: Lengths, rank: RankMemory) -> list[str]:
    """What the prediction is of."""
    step = rank.step
    share = f", {step.text_share:.0%} of each left as text" if step.text_share else ""
    return [
        f"{state.backend_of(config).name}, {config.precision}, {step.batch_size} examples a step, "
        f"accumulation {config.train.accumulation}",
        f"texts of {lengths.context:,} tokens{share}, ratio {step.ratio}, prompts of "
        f"{lengths.before} + {lengths.after}, answers of {lengths.answer}",
    ]


def memory_table(ranks: Sequence[RankMemory], *, reserve: int, limit: int) -> list[str]:
    """GiB of a rank of each group at its peak."""
    heads = [" + ".join(rank.decoders) for rank in ranks]
    peaks = [rank.peak for rank in ranks]
    widths = [max(10, len(h), len(p.name)) for h, p in zip(heads, peaks, strict=True)]

    def line(name: str, values: Sequence[str]) -> str:
        cells = (f"{value:>{width}}" for value, width in zip(values, widths, strict=True))
        return "  ".join([f"  {name:<26}", *cells]).rstrip()

    lines = [line("GiB of a rank, at its peak", heads)]
    for row in ROWS:
        if any(peak.parts[row] for peak in peaks):
            lines.append(line(row, [gib(peak.parts[row]) for peak in peaks]))
    lines.append(line("peak", [gib(peak.total) for peak in peaks]))
    lines.append(line("", [peak.name for peak in peaks]))
    lines.append(line("at rest", [gib(rank.at_rest) for rank in ranks]))
    if any(rank.host for rank in ranks):
        lines.append(line("on the host", [gib(rank.host) for rank in ranks]))
    lines.append(line("device and libraries", [gib(reserve)] * len(ranks)))
    fits = [peak.total + reserve <= limit for peak in peaks]
    lines.append(line(f"of {gib(limit)}", ["fits" if fit else "too much" for fit in fits]))
    return lines


def advice_lines(advice: Advice, *, reserve: int) -> list[str]:
    """What to change, and what the fullest rank then holds."""

    def line(change: Change) -> str:
        return f"  {' '.join(change.keys)}  -> {gib(change.peak + reserve)}"

    if advice.together is None:
        first = "  nothing of ours is enough: more GPUs, shorter texts, or smaller models"
    else:
        first = line(advice.together)
    each = ["each change alone", *(line(change) for change in advice.alone)]
    return ["to make it fit (GiB of the fullest rank)", first, *(each if advice.alone else [])]


def traffic_table(messages: Sequence[Collective]) -> list[str]:
    """A step's collectives as a Markdown table."""
    lines = [
        "| what | over | ranks | kind | whole tensors | calls | sent by each rank |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in messages:
        over = "world" if one.group == WORLD else f"group of {one.group}"
        lines.append(
            f"| {one.what} | {over} | {one.ranks} | {one.kind} | {_size(one.size)} "
            f"| {one.calls:g} | {_size(one.sent)} |"
        )
    return lines


def scaling_table(pair: Pair) -> list[str]:
    """One pair's points as a Markdown table."""
    lines = [
        "| GPUs | compute | waits for the slower decoder | collectives, hidden at best "
        "| waited for | sent over the world | over its group | GiB at most | efficiency |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for point in pair.points:
        lines.append(
            f"| {point.gpus:,} | {point.compute:.3f} s | {point.waiting:.3f} s "
            f"| {point.hidden:.3f} s | {point.exposed:.3f} s | {_size(point.world_bytes)} "
            f"| {_size(point.group_bytes)} | {gib(point.peak)} "
            f"| {point.worst:.0%} to {point.best:.0%} |"
        )
    return lines


def _size(size: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} B"
