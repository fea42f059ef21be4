"""Gate 4: the latent path can carry: 64 examples through it to more than 90 % exact match."""

from pathlib import Path

from conftest import small_overrides

from latentwire import config_file
from latentwire.data.sources import open_source
from latentwire.distributed.assembly import assemble
from latentwire.distributed.groups import ProcessGroups
from latentwire.distributed.topology import plan
from latentwire.evaluation.runner import evaluate
from latentwire.testing import run_distributed
from latentwire.training.stages import Stage
from latentwire.training.trainer import Trainer

NUM_EXAMPLES = 64


def overfit_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, float]:
    import torch

    config = config_file.load("smoke", overrides)
    topology = plan(config.decoders, placement="auto", world_size=world_size)
    job = assemble(config, ProcessGroups(topology, device=torch.device("cpu"), timeout=300))
    source = open_source(source="profiles", path=None, setting="distractor", split="train", seed=0)
    stage = Stage(config, "B", source)
    trainer = Trainer(job, record=lambda record: None, save=lambda stage, step: None)
    for step in range(1, stage.num_steps + 1):
        trainer.step(stage.plan(step))
    seen = {example: None for step in (1, 2) for example in stage.plan(step).examples}
    assert len(seen) == NUM_EXAMPLES
    result = evaluate(job, list(seen))
    if result is None:
        return {}
    metrics, _ = result
    return {name: d["arms"]["latent"]["em"] for name, d in metrics["decoders"].items()}


def test_sixty_four_examples_are_learnt_through_the_wire(
    embedded_pair: Path, tmp_path: Path
) -> None:
    overrides = small_overrides(
        embedded_pair,
        tmp_path,
        "wire.d_z=128",
        f"data.samples={NUM_EXAMPLES}",
        f"train.batch_size={NUM_EXAMPLES // 2}",
        "train.stage_b.steps=120",
        "train.stage_b.warmup_steps=10",
        "diagnostics.log_interval=1000",
        "diagnostics.grad_diag_interval=0",
        f"eval.batch_size={NUM_EXAMPLES}",
    )
    scores = run_distributed(overfit_on_rank, 2, overrides, timeout=280)[0]
    assert scores.keys() == {"llama", "qwen"}
    assert all(em > 0.9 for em in scores.values()), scores
