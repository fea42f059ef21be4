"""What was measured, as a tree for JSON and as a table."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from latentwire.benching import machine
from latentwire.benching.measure import Measured, Settings
from latentwire.benching.setting import Texts
from latentwire.training.preflight import Plan
from latentwire.version import VERSION

COUNTED = ("tf", "first", "kce", "kd")
"""Objectives whose operations are all counted."""
_NAMES = {
    "encoder": "encoder forward",
    "decoders": "decoders forward",
    "backward": "decoders backward",
    "encoder_backward": "encoder backward",
}
_OUTSIDE = ("data", "reduce", "optimizer", "diagnostics", "save", "other")
"""Phases in which no model computes."""


def summary(
    plan: Plan, settings: Settings, measured: Sequence[Measured], *, texts: Texts | None
) -> dict[str, Any]:
    """Every figure.

    Args:
        measured: of every rank, by rank.
        texts: where they are made up.
    """
    config, first = plan.config, measured[0]
    size = config.train.stage_batch_size("B")
    # Ranks move in step, so the first one's time is the time of all.
    seconds = statistics.median(first.steps)
    tokens: dict[str, int] = {}
    total = 0.0
    for one in measured:
        assert one.operations is not None
        total += one.operations.total
        for name, number in one.operations.tokens.items():
            tokens[name] = tokens.get(name, 0) + number
    peak = sum(one.peak for one in measured)
    trained = [name for name, weight in config.objectives.weights.items() if weight > 0]
    if not config.gist.use_gist_head and "gist" in trained:
        trained.remove("gist")
    tree: dict[str, Any] = {
        "version": VERSION,
        "torch": torch.__version__,
        "device": machine.describe(_device()),
        "world_size": plan.topology.world_size,
        "placement": plan.topology.placement,
        "backend": config.sharding.backend,
        "precision": config.precision,
        "recipe": config.run.tag,
        "texts": None if texts is None else dataclasses.asdict(texts),
        "batch_size": size,
        "objectives": trained,
        "not_counted": [name for name in trained if name not in COUNTED],
        "settings": dataclasses.asdict(settings),
        "step_seconds": seconds,
        "step_seconds_blocks": first.steps,
        "examples_per_second": size / seconds,
        "tokens_per_second": {name: number / seconds for name, number in tokens.items()},
        "phases": _phases(first, config.checkpoint.interval),
        "flops_per_step": total,
        "peak_flops": peak,
        "share_of_peak": total / seconds / peak,
        "peak_memory_bytes": max(one.memory for one in measured),
        "padding": first.padding,
        "prepared_seconds": first.prepared,
    }
    if first.plain_steps:
        tree["naive"] = _against(first, size)
    return tree


def _phases(one: Measured, interval: int) -> dict[str, float]:
    """Seconds of a step by phase, the rest as ``other``; a save is shared out over its steps."""
    found = {_NAMES.get(key, key): value for key, value in one.phases.items() if key != "save"}
    found["other"] = max(0.0, one.timed_step - sum(found.values()))
    found["save"] = one.save / interval if interval else 0.0
    return found


def _against(one: Measured, size: int) -> dict[str, Any]:
    assert one.operations is not None and one.plain_operations is not None
    ratios = [plain / own for plain, own in zip(one.plain_steps, one.steps, strict=True)]
    predicted = one.plain_operations.total / one.operations.total
    seconds = statistics.median(one.plain_steps)
    return {
        "step_seconds": seconds,
        "step_seconds_blocks": one.plain_steps,
        "examples_per_second": size / seconds,
        "flops_per_step": one.plain_operations.total,
        "share_of_peak": one.plain_operations.total / seconds / one.peak,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "predicted_ratio": predicted,
        "of_predicted": statistics.median(ratios) / predicted,
        "differences": one.differences,
    }


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def table(tree: Mapping[str, Any]) -> str:
    """For people."""
    phases = tree["phases"]
    whole = sum(phases.values())
    outside = sum(phases[name] for name in _OUTSIDE)
    lines = [
        f"{tree['device']}; {tree['world_size']} rank(s), {tree['placement']}, "
        f"{tree['precision']}, {tree['batch_size']} examples a step",
        "",
        f"step                  {tree['step_seconds']:10.4f} s",
        f"examples a second     {tree['examples_per_second']:10.2f}",
        *(
            f"tokens a second       {value:10.0f}  ({name})"
            for name, value in tree["tokens_per_second"].items()
        ),
        f"operations a step     {tree['flops_per_step'] / 1e9:10.1f} GFLOP",
        f"share of the peak     {tree['share_of_peak']:10.1%}  of {tree['peak_flops'] / 1e9:,.0f} "
        "GFLOP/s, measured with large products",
        f"peak memory           {tree['peak_memory_bytes'] / 2**20:10.0f} MiB",
    ]
    lines += [
        f"padding               {value:10.1%}  ({name})" for name, value in tree["padding"].items()
    ]
    if tree["prepared_seconds"]:
        lines.append(f"teacher's cache       {tree['prepared_seconds']:10.2f} s, once")
    if tree["not_counted"]:
        lines.append(f"(operations of {', '.join(tree['not_counted'])} are not counted)")
    lines += ["", "phase                seconds    share"]
    lines += [
        f"{name:<17} {seconds:10.4f} {seconds / whole:8.1%}" for name, seconds in phases.items()
    ]
    lines.append(f"outside of the models: {outside / whole:.1%}")
    if "naive" in tree:
        lines += ["", *_against_lines(tree["naive"])]
    return "\n".join(lines)


def _against_lines(naive: Mapping[str, Any]) -> list[str]:
    differences = ", ".join(f"{k} {v:.1e}" for k, v in naive["differences"].items())
    return [
        "against the plain loop, in turn on the same batches:",
        f"its step              {naive['step_seconds']:10.4f} s",
        f"its examples a second {naive['examples_per_second']:10.2f}",
        f"its share of the peak {naive['share_of_peak']:10.1%}",
        f"ratio                 {naive['ratio']:10.2f}  (median of "
        f"{', '.join(f'{ratio:.2f}' for ratio in naive['ratios'])})",
        f"ratio of operations   {naive['predicted_ratio']:10.2f}  "
        f"({naive['of_predicted']:.0%} of it reached)",
        f"objectives differ by  {differences} at most, in the first step",
    ]
