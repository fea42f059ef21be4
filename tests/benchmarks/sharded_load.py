"""A large frozen decoder over several ranks: memory that its loading takes, and steps through it.

``python tests/benchmarks/sharded_load.py --folder /scratch/new`` makes a random Llama of a billion
parameters with the embedded pair's tokenizer, loads it in bf16 in one process and over two, and
prints each rank's peak of anonymous memory above what it had before; then it trains 3 steps through
the two ranks' decoder. The model is saved in fp32, so that loading converts it. Saved in bf16
(``--stored bf16``) weights stay mapped from the file in the host's memory, sharded or not, and take
no anonymous memory at all: what is compared then is what is resident once every weight was read.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

sys.path.insert(0, str(Path(__file__).parent.parent))

from anonymous import AnonymousPeak, resident_bytes
from jobs import make_job, make_stage, make_trainer

from latentwire import config_file
from latentwire.config import DecoderConfig
from latentwire.decoders.copy_ranks import CopyRanks
from latentwire.decoders.fingerprint import fingerprint
from latentwire.decoders.loading import load_decoder
from latentwire.distributed.groups import ProcessGroups
from latentwire.distributed.topology import plan
from latentwire.testing import run_distributed

REPOSITORY = Path(__file__).parent.parent.parent
TINY = REPOSITORY / "checkpoints" / "tiny" / "llama"
BOUND = 0.65
"""Of what one process takes for all of it."""


def make(folder: Path, *, num_layers: int, dtype: torch.dtype) -> int:
    """Saves the model; returns how many parameters it has."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=num_layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder, max_shard_size="500MB")
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def load_on_rank(rank: int, world_size: int, folder: str) -> dict[str, float]:
    """Bytes at the peak of loading, bytes resident when all of it was read, and seconds of loading.
    A small load brings in the imports first."""
    config = DecoderConfig(model=folder, shard=world_size, precision="bf16")
    small = DecoderConfig(model=str(TINY), shard=world_size, precision="bf16")
    ranks = None
    if world_size > 1:
        layout = plan({"large": config}, placement="colocated", world_size=world_size)
        copy = ProcessGroups(layout, device=torch.device("cpu"), timeout=600).copy_of("large")
        assert copy is not None
        ranks = CopyRanks(mesh=copy.mesh, bookkeeping=copy.bookkeeping)
    common: dict[str, Any] = {"dtype": torch.bfloat16, "device": torch.device("cpu")}
    load_decoder("large", small, ranks=ranks, **common)
    before, start = resident_bytes(), time.perf_counter()
    with AnonymousPeak() as peak:
        decoder = load_decoder("large", config, ranks=ranks, **common)
    seconds = time.perf_counter() - start
    fingerprint(decoder.model)
    return {"peak": peak.above, "resident": resident_bytes() - before, "seconds": seconds}


def train_on_rank(rank: int, world_size: int, recipe: str) -> dict[str, Any]:
    config = config_file.load(recipe, [])
    with AnonymousPeak() as peak:
        job = make_job(config, world_size)
        trainer, stage = make_trainer(job), make_stage(config)
        rows = [trainer.step(stage.plan(step)).rows()[0] for step in (1, 2, 3)]
    losses, seconds = ([row[key] for row in rows] for key in ("tf", "step_seconds"))
    return {"losses": losses, "seconds": seconds, "peak": peak.above}


def recipe_text(folder: Path, *, num_ranks: int) -> str:
    tree = {
        "encoder": {"model": str(TINY)},
        "decoders": {"large": {"model": str(folder), "precision": "bf16", "shard": num_ranks}},
        "sharding": {"backend": "fsdp"},
        "train": {
            "batch_size": 2 * num_ranks,
            "stage_a": {"steps": 3},
            "stage_b": {"steps": 1},
        },
        "data": {"samples": 48},
        "diagnostics": {"log_interval": 1, "grad_diag_interval": 0},
    }
    return json.dumps(tree)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("sharded_load"))
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stored", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    model = options.folder / "model"
    try:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.stored]
        number = make(model, num_layers=options.layers, dtype=dtype)
        print(f"{number / 1e6:.0f} M parameters, {2 * number / 2**20:.0f} MiB in bf16")
        (whole,) = run_distributed(load_on_rank, 1, str(model), timeout=1800)
        print(f"one process: {shown(whole)}")
        ranks = run_distributed(load_on_rank, options.ranks, str(model), timeout=1800)
        for rank, found in enumerate(ranks):
            print(f"rank {rank}: {shown(found)}")
        recipe = options.folder / "recipe.yaml"
        recipe.write_text(recipe_text(model, num_ranks=options.ranks), encoding="utf-8")
        for rank, found in enumerate(
            run_distributed(train_on_rank, options.ranks, str(recipe), timeout=1800)
        ):
            losses = ", ".join(f"{loss:.3f}" for loss in found["losses"])
            seconds = ", ".join(f"{each:.1f}" for each in found["seconds"])
            print(
                f"rank {rank}: 3 steps, loss {losses}, {seconds} s, peak of all "
                f"{found['peak'] / 2**20:.0f} MiB"
            )
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    what = "peak" if options.stored == "fp32" else "resident"
    worst = max(found[what] for found in ranks) / whole[what]
    print(f"{what} of the worst rank: {worst:.3f} of one process's; the bound is {BOUND}")
    return int(worst >= BOUND)


def shown(found: Mapping[str, float]) -> str:
    return (
        f"peak {found['peak'] / 2**20:.0f} MiB anonymous, resident {found['resident'] / 2**20:.0f} "
        f"MiB, {found['seconds']:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
