"""``latentwire plan``: does a job fit its GPUs, and how is it laid out? Nothing is downloaded.

Memory, layout and costs are computed from the configuration and the models' shapes: those of a
local folder's config.json, or of the recipes. A model that is neither is looked for on the hub.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from latentwire import config_file
from latentwire.arguments import Parser, add_run, with_flags
from latentwire.config import Config, ConfigError
from latentwire.distributed import topology
from latentwire.distributed.topology import Topology
from latentwire.planning import batch, cost, layout, scaling, shapes, text, traffic
from latentwire.planning.advice import Adviser
from latentwire.planning.batch import Lengths
from latentwire.planning.cost import Device
from latentwire.planning.frozen import shard_of
from latentwire.planning.memory import GIB, Models, RankMemory, fullest, predict

_HELP = "what a GPU and its links do is assumed, not measured: "


def main(arguments: Sequence[str]) -> int:
    """Plans a job and prints it.

    Returns:
        0 it fits, 1 it does not or that cannot be said, 2 bad input.
    """
    try:
        options, overrides = _parse(arguments)
        if options["scaling"]:
            return _scaling(_device(options), options)
        config = config_file.load(options["recipe"], overrides)
        return _plan(config, options)
    except ConfigError as error:
        print("\n  ".join(["latentwire plan:", *error.problems]), file=sys.stderr)
        return 2


def _parse(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    parser = Parser(prog="latentwire plan", description=__doc__, allow_abbrev=False)
    add_run(parser)
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    real: dict[str, Any] = {"type": float, "metavar": "X"}
    parser.add_argument("--nodes", default=1, help="default 1", **number)
    parser.add_argument("--gpus-per-node", default=8, help="default 8", **number)
    parser.add_argument("--gpu-memory", default=80.0, help="GiB of each; default 80", **real)
    parser.add_argument(
        "--reserve",
        default=2.0,
        help="GiB that the device's context, communication and the allocator take; default 2",
        **real,
    )
    parser.add_argument(
        "--context-tokens", help="length of a text; default: the longest that is read", **number
    )
    parser.add_argument(
        "--prompt-tokens", help="of a prompt around the text; default 104", **number
    )
    parser.add_argument(
        "--cost",
        action="append",
        default=[],
        metavar="NAME=SECONDS",
        help="measured seconds of an example in a decoder on one GPU, for the shares",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--traffic", action="store_true", help="print what a step's collectives carry too"
    )
    parser.add_argument(
        "--scaling", action="store_true", help="print the table of launch/SCALING.md instead"
    )
    default = Device()
    for name, unit, scale in _DEVICE:
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            default=getattr(default, name) / scale,
            help=f"{_HELP}{unit}; default {getattr(default, name) / scale:g}",
            **real,
        )
    parser.set_defaults(recipe=None)
    found = parser.parse_intermixed_args(list(arguments))
    overrides, options = with_flags(found), vars(found)
    if wrong := _problems(options, overrides):
        raise ConfigError(wrong)
    return options | {"recipe": options["recipe"] or "smoke"}, overrides


def _problems(options: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """What is wrong with numbers, and with what ``--scaling`` would not read."""
    found = [
        f"--{name.replace('_', '-')}: {options[name]} should be above 0, and at most {_MOST:.0e}"
        for name in (*_POSITIVE, *(name for name, _, _ in _DEVICE))
        # Written so that NaN is refused too.
        if options[name] is not None and not 0 < options[name] <= _MOST
    ]
    if not 0 <= options["reserve"] <= _MOST:
        found.append(
            f"--reserve: {options['reserve']} should be 0 or more, and at most {_MOST:.0e}"
        )
    if not found and options["nodes"] * options["gpus_per_node"] > _MOST_GPUS:
        found.append(
            f"--nodes {options['nodes']} of --gpus-per-node {options['gpus_per_node']}: should be "
            f"{_MOST_GPUS} GPUs at most"
        )
    if options["scaling"] and (given := [options["recipe"], *overrides]) != [None]:
        shown = ", ".join(text for text in given if text)
        found.append(f"--scaling: prints a table of its own recipe, not of {shown}; leave it out")
    return found


_MOST = 1e12
_MOST_GPUS = 1 << 20
_POSITIVE = ("nodes", "gpus_per_node", "gpu_memory", "context_tokens", "prompt_tokens")
_DEVICE = (
    ("flops", "TFLOP/s a GPU sustains", 1e12),
    ("node_bandwidth", "GB/s a GPU sends inside a node", 1e9),
    ("link_bandwidth", "GB/s a GPU sends to other nodes", 1e9),
    ("latency", "microseconds a message takes", 1e-6),
)
"""Options that make a ``Device``: name, unit, and what one of it is."""


def _device(options: Mapping[str, Any]) -> Device:
    return Device(**{name: options[name] * scale for name, _, scale in _DEVICE})


@dataclass(frozen=True, kw_only=True)
class _Costs:
    """What a step's work is, and ranks by it."""

    seconds: dict[str, float]
    """Of each decoder's whole part of a step on one GPU."""
    measured: bool
    shares: dict[str, float]
    split: cost.Split | None


def _plan(config: Config, options: Mapping[str, Any]) -> int:
    nodes = layout.Nodes(num_nodes=options["nodes"], gpus_per_node=options["gpus_per_node"])
    topo = _layout(config, nodes)
    models, origins, unknown = _models(config)
    warnings = layout.warnings(config, topo, nodes)
    if models is None:
        _print_unknown(topo, nodes, warnings, unknown, as_json=options["json"])
        return 1
    lengths = batch.longest(
        config,
        models.encoder,
        context=options["context_tokens"],
        prompt=options["prompt_tokens"],
    )
    ranks = predict(config, models, topo, lengths)
    limit, reserve = int(options["gpu_memory"] * GIB), int(options["reserve"] * GIB)
    fits = all(rank.peak.total + reserve <= limit for rank in ranks)
    costs = _costs(config, models, topo, lengths, options)
    found_advice = None
    if not fits:
        found_advice = Adviser(config, models, lengths, nodes=nodes, limit=limit - reserve).advise()
    messages = traffic.collectives(config, models, topo, batch.step_shapes(config)[0], lengths)
    if options["json"]:
        found = _tree(topo, nodes, ranks, lengths, costs, warnings, fits=fits)
        found["advice"] = asdict(found_advice) if found_advice else None
        found["collectives"] = [asdict(one) | {"sent": one.sent} for one in messages]
        print(json.dumps(found, indent=2))
        return 0 if fits else 1
    lines = [
        *layout.table(topo, nodes),
        *(f"  warning: {warning}" for warning in warnings),
        "parameters",
        *text.models_table(config, models, origins),
        *text.setting_lines(config, lengths, fullest(ranks)),
        *text.memory_table(ranks, reserve=reserve, limit=limit),
        *_cost_lines(costs, topo),
    ]
    if options["traffic"]:
        lines += ["", *text.traffic_table(messages)]
    if found_advice is not None:
        lines += text.advice_lines(found_advice, reserve=reserve)
    print("\n".join(lines))
    return 0 if fits else 1


def _layout(config: Config, nodes: layout.Nodes) -> Topology:
    """The layout of a world of all GPUs.

    Raises:
        ConfigError: there is none, or the batch cannot be split over it.
    """
    try:
        topo = layout.lay_out(config, nodes)
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    problems = [
        problem
        for key, size in config.train.batch_sizes().items()
        for problem in topology.batch_problems(
            topo, batch_size=size, accumulation=config.train.accumulation, key=key
        )
    ]
    for name, settings in config.decoders.items():
        size, shard = topo.group(name).size, shard_of(settings)
        if size % shard:
            problems.append(
                f"decoders.{name}.shard: {shard} does not divide the {size} ranks of its group; "
                f"use a divisor, or decoders.{name}.ranks"
            )
    if problems:
        raise ConfigError(problems)
    return topo


def _models(config: Config) -> tuple[Models | None, dict[str, str], list[str]]:
    """Every model's shape, where each is from, and what is said of those nobody knows."""
    asked = {name: (d.model, d.revision) for name, d in config.decoders.items()}
    if config.encoder.kind != "byte":
        asked = {"encoder": (config.encoder.model, config.encoder.revision)} | asked
    found = {name: shapes.find(model, revision=at) for name, (model, at) in asked.items()}
    unknown = [f"{name}: {one.origin}" for name, one in found.items() if one.shape is None]
    origins = {name: one.origin for name, one in found.items()}
    known = {name: one.shape for name, one in found.items() if one.shape is not None}
    if unknown:
        return None, origins, unknown
    encoder = known.pop("encoder", None)
    return Models(encoder=encoder, decoders=known), origins, []


def _print_unknown(
    topo: Topology,
    nodes: layout.Nodes,
    warnings: Sequence[str],
    unknown: Sequence[str],
    *,
    as_json: bool,
) -> None:
    if as_json:
        print(json.dumps({"fits": None, "unknown": list(unknown), "warnings": list(warnings)}))
        return
    lines = [*layout.table(topo, nodes), *(f"  warning: {warning}" for warning in warnings)]
    lines += ["memory is not predicted, since a model's shape is not known:"]
    print("\n".join([*lines, *(f"  {one}" for one in unknown)]))


def _costs(
    config: Config, models: Models, topo: Topology, lengths: Lengths, options: Mapping[str, Any]
) -> _Costs:
    """The work of each decoder on its whole batch, and the shares that even it out.

    Raises:
        ConfigError: ``--cost`` names no decoder, leaves one out, or is no number.
    """
    given = _given_costs(config, options["cost"])
    step = batch.step_shapes(config)[-1]
    micro = step.batch_size // config.train.accumulation
    seconds = {}
    for name, shape in models.decoders.items():
        if given:
            seconds[name] = given[name] * step.batch_size
            continue
        read = batch.decoder_read(config, topo, name, step, lengths)
        whole = cost.decoder_flops(config, name, shape, read, step) * topo.group(name).size
        seconds[name] = config.train.accumulation * whole / _device(options).flops
    split = None
    if topo.placement == "separate":
        split = cost.best_split(config, topo, seconds, micro_batch=micro)
    return _Costs(seconds=seconds, measured=bool(given), shares=cost.shares(seconds), split=split)


def _given_costs(config: Config, given: Sequence[str]) -> dict[str, float]:
    found, problems = {}, []
    for one in given:
        name, _, value = one.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            problems.append(f"--cost {one}: should be NAME=SECONDS")
            continue
        if name not in config.decoders or not 0 < found[name] <= _MOST:
            problems.append(
                f"--cost {one}: should name one of {', '.join(config.decoders)}, and be above 0, "
                f"at most {_MOST:.0e}"
            )
    missing = [name for name in config.decoders if given and name not in found]
    if missing and not problems:
        problems.append(f"--cost: {', '.join(missing)} has none; give all decoders or none")
    if problems:
        raise ConfigError(problems)
    return found


def _cost_lines(costs: _Costs, topo: Topology) -> list[str]:
    how = "measured" if costs.measured else "computed"
    each = ", ".join(f"{name} {spent:.3g} s" for name, spent in costs.seconds.items())
    lines = [f"decoders' work in a step, on one GPU ({how}): {each}"]
    if topo.placement != "separate" or len(costs.seconds) < 2:
        return lines
    shares = " ".join(f"decoders.{name}.share={share:g}" for name, share in costs.shares.items())
    lines.append(f"  by cost: {shares}")
    now = max(spent / topo.group(name).size for name, spent in costs.seconds.items())
    if costs.split is not None and costs.split.slowest < 0.99 * now:
        ranks = " ".join(f"decoders.{n}.ranks={size}" for n, size in costs.split.ranks.items())
        gain = 1 - costs.split.slowest / now
        lines.append(
            f"  fastest on these ranks: {ranks} (the decoders' part takes {gain:.0%} less)"
        )
    else:
        lines.append("  the layout above is the fastest of this batch on these ranks")
    return lines


def _tree(
    topo: Topology,
    nodes: layout.Nodes,
    ranks: Sequence[RankMemory],
    lengths: Lengths,
    costs: _Costs,
    warnings: Sequence[str],
    *,
    fits: bool,
) -> dict[str, Any]:
    return {
        "fits": fits,
        "layout": {
            "placement": topo.placement,
            "nodes": nodes.num_nodes,
            "gpus_per_node": nodes.gpus_per_node,
            "groups": {spec.decoder: list(spec.ranks) for spec in topo.groups},
        },
        "warnings": list(warnings),
        "lengths": asdict(lengths),
        "ranks": [
            {
                "ranks": list(rank.ranks),
                "decoders": list(rank.decoders),
                "peak_bytes": rank.peak.total,
                "peak_at": rank.peak.name,
                "at_rest_bytes": rank.at_rest,
                "host_bytes": rank.host,
                "moments": {moment.name: dict(moment.parts) for moment in rank.moments},
            }
            for rank in ranks
        ],
        "costs": asdict(costs),
    }


def _scaling(device: Device, options: Mapping[str, Any]) -> int:
    study, found = scaling.pairs(device, gpus_per_node=options["gpus_per_node"])
    if options["json"]:
        tree = [
            asdict(pair)
            | {"efficiency": {point.gpus: [point.worst, point.best] for point in pair.points}}
            for pair in found
        ]
        print(json.dumps({"study": study, "device": asdict(device), "pairs": tree}, indent=2))
        return 0
    for pair in found:
        print("\n".join([f"**{pair.name}**", "", *text.scaling_table(pair), ""]))
    return 0
