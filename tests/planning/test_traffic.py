"""The bytes that a plan says collectives carry are those that a step's collectives carry."""

import functools
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import pytest
import steps
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from conftest import REPOSITORY, small_overrides

from latentwire import config_file
from latentwire.decoders import copy_ranks
from latentwire.distributed import exchange, fsdp_backend, pairwise, topology
from latentwire.planning import batch, parts
from latentwire.planning.scaling import known
from latentwire.planning.traffic import collectives
from latentwire.testing import run_distributed
from latentwire.training.signals import StopRequest

SETTING = {"batch": 24, "questions": 2, "words": 40}
ZERO = {
    f"ZeRO {stage}": [
        "sharding.backend=deepspeed",
        f"sharding.ds_config={REPOSITORY / 'ds_configs' / f'zero{stage}.json'}",
    ]
    for stage in (1, 2)
}
ZERO3 = REPOSITORY / "tests" / "ds_configs" / "zero3_sharded.json"
VARIANTS: dict[str, list[str]] = {
    "FSDP2": ["sharding.backend=fsdp"],
    "FSDP2, accumulation": ["sharding.backend=fsdp", "train.accumulation=2"],
    "FSDP2, LoRA, bf16": ["sharding.backend=fsdp", "encoder.lora.rank=4", "precision=bf16"],
    "FSDP2, norms": ["sharding.backend=fsdp", "diagnostics.grad_diag_units=[]"],
    "FSDP2, automatic weights": [
        *("sharding.backend=fsdp", "diagnostics.grad_diag_interval=0"),
        *("objectives.auto_weight=true", "objectives.auto_interval=1"),
    ],
    **ZERO,
    "sharded decoders": [
        "sharding.backend=fsdp",
        # Each norm is another way back through the decoder, for some objectives part of it.
        "diagnostics.grad_diag_interval=0",
        "decoders.llama.ranks=2",
        "decoders.llama.shard=2",
        "decoders.qwen.shard=2",
    ],
    "ZeRO 3": ["sharding.backend=deepspeed", f"sharding.ds_config={ZERO3}"],
}
ALLOWED = {"sharded decoders": (0.1, 4), "ZeRO 3": (0.2, 64)}
"""Shares of what is sent, and bytes, that a plan may be away from it. Shards are padded to equal
sizes, which no plan counts: 2 % of so small a pair. A sharded decoder looks up what its rows really
hold, and finds a layer whole now and then; stage 3 gathers some parameters once where the plan has
twice, and agrees on a few numbers."""
WORLD = 4
NAMES = (
    *("all_gather_single", "all_gather_into_tensor", "all_gather"),
    *("reduce_scatter_single", "reduce_scatter_tensor", "reduce_scatter"),
    *("all_reduce", "reduce", "broadcast", "all_gather_coalesced"),
)


class Counter:
    """Counts bytes by group and kind, in torch's own functions."""

    def __init__(self) -> None:
        self.sizes: dict[str, float] = defaultdict(float)
        self._inside = False
        for name in NAMES:
            if hasattr(dist, name):
                setattr(dist, name, self._counting(name, getattr(dist, name)))
        for name in ("all_gather_single", "all_gather_tensor"):
            if hasattr(funcol, name):
                setattr(funcol, name, self._counting("gather of shards", getattr(funcol, name)))
        for kind, name in (
            (pairwise.PairwiseAllGather, "all_gather_single"),
            (pairwise.PairwiseReduceScatter, "reduce_scatter_single"),
        ):
            kind.__call__ = self._counting(name, kind.__call__)
        for module in (exchange, copy_ranks):
            module.all_gather = self._counting("all_gather_single", module.all_gather)
            module.reduce_scatter = self._counting("reduce_scatter", module.reduce_scatter)

    def _counting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside = True
            try:
                self._add(name, args, kwargs)
                return function(*args, **kwargs)
            finally:
                self._inside = False

        return call

    def _add(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [*args, *kwargs.values()]
        if name == "gather of shards":
            shard = kwargs.get("self", args[0] if args else None)
            mesh, dim = kwargs["group"] if "group" in kwargs else args[2]
            group = mesh.get_group(dim)
            whole = shard.numel() * shard.element_size() * group.size()
            where = group.group_desc.split("/")[0]
            self.sizes[f"{where} all-gather"] += whole if group.size() > 1 else 0
            return
        flat = [t for value in tensors for t in (value if isinstance(value, list) else [value])]
        sizes = [t.numel() * t.element_size() for t in flat if isinstance(t, torch.Tensor)]
        groups = [v for v in tensors if isinstance(v, dist.ProcessGroup)]
        group = groups[0].group_desc.split("/")[0] if groups else "none"
        if groups and groups[0].size() == 1:
            return
        # The largest of what goes in and comes out is the whole tensor; of a list, its sum.
        is_list = name in ("all_gather", "reduce_scatter", "all_gather_coalesced")
        whole = sum(sizes) - min(sizes) if is_list and len(sizes) > 2 else max(sizes)
        kind = name.replace("_single", "").replace("_into_tensor", "").replace("_tensor", "")
        self.sizes[f"{group} {kind.replace('_', '-')}"] += whole


def counted(
    rank: int, world_size: int, overrides: list[str], variants: dict[str, list[str]]
) -> dict[str, Any]:
    """What every variant's second step sends, and how long its texts are."""
    # Layers of the small pair are gathered one by one too.
    fsdp_backend.GATHERED_ALONE = 1000
    counter, found = Counter(), {}
    for name, more in variants.items():
        config = config_file.load("smoke", [*overrides, *more])
        job = jobs.make_job(config, world_size)
        trainer, stage = jobs.make_trainer(job), jobs.make_stage(config)
        trainer.step(steps.plan(stage, 1, SETTING))
        plan = steps.plan(stage, 2, SETTING)
        counter.sizes.clear()
        record = trainer.step(plan)
        StopRequest().agreed(job.groups.world)
        record.reduced()
        found[name] = {
            "sizes": dict(counter.sizes),
            "lengths": steps.lengths(job, plan.examples),
            "decoder": list(job.decoders)[0],
        }
    return found


@pytest.mark.slow
def test_planned_bytes_are_those_that_are_sent(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uneven groups of 1 and 3 ranks; sums by group and kind of collective."""
    monkeypatch.setattr(parts, "GATHERED_ALONE", 1000)
    overrides = small_overrides(
        pair,
        tmp_path,
        "placement=separate",
        "decoders.llama.ranks=1",
        "train.batch_size=24",
        "data.questions_per_context=2",
        "train.stage_a.warmup_text_latent_prob=0",
    )
    results = run_distributed(counted, WORLD, overrides, VARIANTS)
    lines, wrong = [], []
    for name, more in VARIANTS.items():
        config = config_file.load("smoke", [*overrides, *more])
        layout = topology.plan(config.decoders, placement="separate", world_size=WORLD)
        rank = results[WORLD - 1][name]
        at = batch.Lengths(**rank["lengths"])
        (step,) = {s.ratio: s for s in batch.step_shapes(config)}.values()
        planned: dict[str, float] = defaultdict(float)
        for one in collectives(config, known(config), layout, step, at):
            if one.group in ("world", rank["decoder"]):
                planned[f"{one.group} {one.kind}"] += one.size
        for key in sorted(planned | rank["sizes"]):
            sent, expected = rank["sizes"].get(key, 0.0), planned.get(key, 0.0)
            lines.append(f"{name:<20} {key:<24} sent {sent:>12,.0f} planned {expected:>12,.0f}")
            share, more = ALLOWED.get(name, (0.02, 4))
            if abs(expected - sent) > share * sent + more:
                wrong.append(lines[-1])
    print("\n".join(lines))
    assert not wrong, "\n".join(wrong)
