"""Peak anonymous memory of training steps, measured in a process of its own per rank.

``python peaks.py JOB RANK`` runs what the JSON file JOB describes: settings one after the other, on
``world_size`` ranks; each rank writes ``JOB.RANK``. glibc is told by the environment to give every
freed tensor back at once, and the kernel's high-water mark is reset before the measured step.
"""

import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIBRARIES = (
    "deepspeed",
    "peft",
    "torch._dynamo",
    "latentwire.distributed.deepspeed_backend",
    "latentwire.training.run",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
)
"""Imported before anything is measured, as they would be for good."""
TESTS = Path(__file__).parent.parent
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
"""No pool of freed memory: what is no tensor any more is no memory any more."""


def measure(
    folder: Path, settings: Mapping[str, Mapping[str, Any]], *, world_size: int, timeout: float
) -> list[dict[str, dict[str, Any]]]:
    """Runs every setting on ``world_size`` ranks; returns each rank's findings by setting."""
    job = folder / "job.json"
    job.write_text(json.dumps({"world_size": world_size, "settings": settings}))
    environment = os.environ | MALLOC | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment["PYTHONPATH"] = f"{TESTS.parent}:{TESTS}"
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(job), str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert not any(process.returncode for process in ranks), "\n".join(outputs)[-4000:]
    return [json.loads(Path(f"{job}.{rank}").read_text()) for rank in range(world_size)]


def memory() -> dict[str, int]:
    """This process's memory in bytes, as the kernel counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {
        key: int(fields[key].split()[0]) * 1024
        for key in ("VmHWM", "RssAnon", "RssFile", "RssShmem")
    }


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Most anonymous bytes since ``reset_peak``; pages of files hardly change meanwhile."""
    found = memory()
    return found["VmHWM"] - found["RssFile"] - found["RssShmem"]


def main(job_file: str, rank: int) -> None:
    import torch
    import torch.distributed as dist

    for module in LIBRARIES:
        importlib.import_module(module)
    torch.set_num_threads(1)
    job = json.loads(Path(job_file).read_text())
    store = dist.FileStore(f"{job_file}.store", job["world_size"])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=job["world_size"])
    found = {}
    for name, setting in job["settings"].items():
        found[name] = _measured(setting, job["world_size"])
    Path(f"{job_file}.{rank}").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)


def _measured(setting: Mapping[str, Any], world_size: int) -> dict[str, Any]:
    import jobs
    import steps

    from latentwire import config_file

    config = config_file.load("smoke", setting["overrides"])
    stage = jobs.make_stage(config)
    # The first step is there for the optimizer's state, which comes with it.
    first = setting | {"batch": 2 * setting["questions"], "words": 10}
    plans = [steps.plan(stage, 1, first), steps.plan(stage, 2, setting)]
    gc.collect()
    baseline = memory()["RssAnon"]
    job = jobs.make_job(config, world_size)
    for decoder in job.decoders.values():
        # On the CPU they may be pages of their file; a GPU has no such thing.
        for weight in decoder.model.parameters():
            weight.data = weight.data.clone()
    trainer = jobs.make_trainer(job)
    trainer.step(plans[0])
    at_rest = memory()["RssAnon"] - baseline
    reset_peak()
    trainer.step(plans[1])
    highest = peak() - baseline
    lengths = steps.lengths(job, plans[1].examples)
    del trainer, job
    gc.collect()
    return {"peak": highest, "at_rest": at_rest, "lengths": lengths}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
