"""What diagnostics cost a training step: paired runs on the embedded pair, in a world of two.

    python tests/benchmarks/diagnostics_overhead.py [--steps 25] [--repeats 4] [--only rows ...]

One job trains the same steps again and again, each time with other diagnostics, in turn, so that
whatever else the machine does meets all of them alike. A setting's cost is the median over the
repeats of its time to that of the same repeat without diagnostics.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from latentwire import config_file
from latentwire.config import Config
from latentwire.diagnostics.rank_stream import RankStream
from latentwire.distributed.assembly import Job, assemble
from latentwire.distributed.groups import ProcessGroups
from latentwire.distributed.messages import barrier
from latentwire.distributed.topology import plan
from latentwire.testing import run_distributed
from latentwire.training.trainer import Trainer

FOUR = ("tf", "first", "kce", "kd")
NEVER = 1 << 30


def settings(steps: int) -> dict[str, dict[str, Any]]:
    """Diagnostics of each setting; norms are measured once in ``steps``."""
    norms = {"log_interval": 1, "grad_diag_interval": steps}
    return {
        "off": {"log_interval": NEVER, "grad_diag_interval": 0},
        "rows": {"log_interval": 1, "grad_diag_interval": 0},
        "norms": norms | {"grad_diag_components": FOUR},
        "norms at the ends": norms | {"grad_diag_components": FOUR, "grad_diag_units": ("none",)},
        "norms without the encoder": norms
        | {"grad_diag_components": FOUR, "grad_diag_units": ("adapter", "deep_prefix")},
        **{f"only {name}": norms | {"grad_diag_components": (name,)} for name in FOUR},
    }


def on_rank(
    rank: int,
    world_size: int,
    overrides: list[str],
    steps: int,
    repeats: int,
    folder: str,
    only: list[str],
    cpu: bool,
) -> dict[str, list[float]]:
    """Seconds of ``steps`` steps by setting, one for each repeat."""
    import torch

    config = config_file.load("smoke", overrides)
    topology = plan(config.decoders, placement=config.placement, world_size=world_size)
    groups = ProcessGroups(topology, device=torch.device("cpu"), timeout=600)
    job = assemble(config, groups)
    stage = _stage(config)
    chosen = {k: v for k, v in settings(steps).items() if not only or k in ("off", *only)}
    found: dict[str, list[float]] = {name: [] for name in chosen}
    clock = time.process_time if cpu else time.perf_counter
    _seconds(job, config, stage, 3, folder, clock)
    for _ in range(repeats):
        for name, diagnostics in chosen.items():
            changed = dataclasses.replace(config.diagnostics, **diagnostics)
            own = dataclasses.replace(config, diagnostics=changed)
            found[name].append(_seconds(job, own, stage, steps, folder, clock))
            if rank == 0:
                print(f"{name}: {found[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return found


def _stage(config: Config) -> Any:
    from latentwire.data.sources import open_source
    from latentwire.training.stages import Stage

    source = open_source(source="profiles", path=None, setting=None, split="train", seed=0)
    return Stage(config, "B", source)


def _seconds(job: Job, config: Config, stage: Any, steps: int, folder: str, clock: Any) -> float:
    job.config = config
    stream = RankStream(
        Path(folder) / "rows.jsonl", run="benchmark", groups=job.groups, settings=config.diagnostics
    )

    def record(step: Any) -> None:
        if step.is_logged:
            stream.write(step.rows())

    trainer = Trainer(job, record=record, save=lambda stage, step: None)
    barrier(job.groups.world)
    start = clock()
    for step in range(1, steps + 1):
        record(trainer.step(stage.plan(step)))
    barrier(job.groups.world)
    seconds: float = clock() - start
    stream.close()
    return seconds


def main() -> None:
    """Prints one JSON object: median cost of each setting, as a share of a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--backend", default="fsdp", choices=["fsdp", "deepspeed"])
    parser.add_argument("--only", nargs="*", default=[], choices=list(settings(1)))
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="of rank 0's processor time in place of the wall's: what a busy machine does is left "
        "out, and so is waiting",
    )
    options = parser.parse_args()
    root = Path(__file__).parents[2] / "checkpoints" / "tiny"
    overrides = [
        f"encoder.model={root / 'llama'}",
        f"decoders.llama.model={root / 'llama'}",
        f"decoders.qwen.model={root / 'qwen'}",
        f"sharding.backend={options.backend}",
        "placement=separate",
        # All four are trained, so that no setting measures what another does not.
        *("objectives.first=0.5", "objectives.kce=0.5", "objectives.kd=0.5"),
        "diagnostics.health_interval=0",
    ]
    with tempfile.TemporaryDirectory() as folder:
        seconds, *_ = run_distributed(
            on_rank,
            2,
            overrides,
            options.steps,
            options.repeats,
            folder,
            options.only,
            options.cpu,
            timeout=3000,
        )
    pairs = {
        name: [one / off - 1 for one, off in zip(each, seconds["off"], strict=True)]
        for name, each in seconds.items()
    }
    report = {
        "seconds_per_step_off": round(statistics.median(seconds["off"]) / options.steps, 4),
        **{
            name: {
                "cost": round(statistics.median(costs), 4),
                "each": [round(cost, 4) for cost in costs],
            }
            for name, costs in pairs.items()
            if name != "off"
        },
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
