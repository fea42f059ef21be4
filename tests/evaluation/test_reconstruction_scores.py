"""What decoders write out of their wires: by hand, for every batch size and layout, reported."""

import json
import math
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
import torch.nn.functional as F
from conftest import small_overrides

from latentwire import config_file
from latentwire.config import Config
from latentwire.data.example import Example
from latentwire.data.loader import global_batch
from latentwire.data.rewriting import REPEAT_CUE
from latentwire.evaluation.reconstruction import ARMS, reconstruction_scores
from latentwire.evaluation.table import result_table
from latentwire.testing import run_distributed
from latentwire.training.preflight import preflight
from latentwire.training.run import train
from latentwire.wire.controls import wrong_texts

NUM_TOKENS = 9
BATCH_SIZES = (1, 4, 48)
Scores = dict[str, dict[str, dict[str, float]]]


def some_examples(config: Config) -> list[Example]:
    """Of five texts and a short one, most of them asked about more than once."""
    stage = jobs.make_stage(config)
    found = [example for step in range(1, 6) for example in stage.plan(step).examples]
    texts = list(dict.fromkeys(example.context for example in found))[:5]
    short = Example(context="Some tea.", question="What?", answers=("tea",))
    return [*(example for example in found if example.context in texts), short]


def scored_on_rank(
    rank: int, world_size: int, overrides: list[str], batch_sizes: tuple[int, ...]
) -> dict[str, Scores] | None:
    found = {}
    for size in batch_sizes:
        config = config_file.load("smoke", [*overrides, f"eval.batch_size={size}"])
        job = jobs.make_job(config, world_size)
        job.wire.eval()
        scores = reconstruction_scores(job, some_examples(config))
        assert (scores is None) == (rank > 0)
        if scores is not None:
            found[str(size)] = scores
    return found or None


@pytest.fixture(scope="module")
def overrides(embedded_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return small_overrides(
        embedded_pair,
        tmp_path_factory.mktemp("reconstruction"),
        "sharding.backend=fsdp",
        "wire.latent_private_len=1",
        "adapter.use_deep_prefix=false",
        "train.batch_size=6",
        "data.questions_per_context=3",
        "objectives.ae=1",
        f"objectives.ae_tokens={NUM_TOKENS}",
    )


@pytest.fixture(scope="module")
def found(overrides: list[str]) -> dict[str, Scores]:
    (result,) = run_distributed(scored_on_rank, 1, [*overrides, "placement=colocated"], BATCH_SIZES)
    return result  # type: ignore[no-any-return]


def by_hand(reference: jobs.SingleProcess, name: str, arm: str) -> dict[str, float]:
    """The scores from one forward a text of the model as it is loaded."""
    decoder, prompts = reference.decoders[name], reference.prompts[name]
    embed = decoder.model.get_input_embeddings()
    texts = list(dict.fromkeys(e.context for e in some_examples(reference.config)))
    wrong = wrong_texts(texts, seed=reference.config.run.seed)
    losses, right = [], 0
    for text in texts:
        answer = torch.tensor(prompts.plain_ids(text)[:NUM_TOKENS])
        before = embed(torch.tensor(prompts.lead, dtype=torch.long))
        behind = embed(torch.tensor([*prompts.plain_ids(REPEAT_CUE), *answer.tolist()]))
        wire = before[:0]
        if arm != "no_wire":
            shown = Example(
                context=wrong[text] if arm == "wrong_wire" else text, question="", answers=("",)
            )
            wire = reference.inject(name, global_batch([shown], prompts)).vectors[0]
        with torch.no_grad():
            whole = torch.cat([before, wire, behind])[None]
            logits = decoder.model(inputs_embeds=whole).logits[0, -len(answer) - 1 : -1]
        losses += F.cross_entropy(logits, answer, reduction="none").tolist()
        right += int((logits.argmax(-1) == answer).sum())
    assert len(texts) == 6
    assert len(losses) < 6 * NUM_TOKENS, "the short text counts by its tokens"
    return {"nll": math.fsum(losses) / len(losses), "accuracy": right / len(losses)}


@pytest.mark.parametrize("arm", ["latent", "wrong_wire", "no_wire"])
def test_a_score_is_the_cross_entropy_of_the_plain_model(
    arm: str, found: dict[str, Scores], overrides: list[str]
) -> None:
    reference = jobs.SingleProcess(overrides)
    for name in reference.decoders:
        assert found["4"][name][arm] == pytest.approx(by_hand(reference, name, arm), rel=1e-5)


def test_every_arm_reads_something_else(found: dict[str, Scores]) -> None:
    for scores in found["4"].values():
        assert tuple(scores) == ARMS
        losses = [scores[arm]["nll"] for arm in ARMS]
        assert all(math.isfinite(loss) and loss > 0 for loss in losses)
        for index, loss in enumerate(losses):
            others = losses[index + 1 :]
            assert all(abs(loss - other) > 1e-4 for other in others), losses


def same(one: Scores, other: Scores) -> None:
    assert one.keys() == other.keys()
    for name, arms in one.items():
        for arm, scores in arms.items():
            assert other[name][arm] == pytest.approx(scores, rel=1e-5), f"{name}: {arm}"


def test_every_text_counts_once_in_batches_of_any_size(found: dict[str, Scores]) -> None:
    """Six texts by one, by four, where two fill the last batch up, and in one batch of many."""
    for size in BATCH_SIZES[1:]:
        same(found[str(BATCH_SIZES[0])], found[str(size)])


@pytest.mark.parametrize("placement", ["separate", "colocated"])
def test_two_processes_give_the_scores_of_one(
    placement: str, found: dict[str, Scores], overrides: list[str]
) -> None:
    first, second = run_distributed(
        scored_on_rank, 2, [*overrides, f"placement={placement}"], BATCH_SIZES[1:]
    )
    assert second is None
    for size in BATCH_SIZES[1:]:
        same(first[str(size)], found["1"])


def train_on_rank(rank: int, world_size: int, overrides: list[str]) -> str:
    return train(preflight(config_file.load("smoke", overrides), world_size=world_size)).state


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_it_is_reported_where_it_is_trained(weight: float, pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(
        pair,
        tmp_path,
        "sharding.backend=fsdp",
        "objectives.kd=0",
        f"objectives.ae={weight}",
        "train.stage_a.steps=1",
        "train.stage_b.steps=0",
        "eval.max_new_tokens=1",
    )
    assert run_distributed(train_on_rank, 1, overrides) == ["finished"]
    folder = tmp_path / "runs" / "test"
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    log = (folder / "pipeline.log").read_text()
    for name in ("llama", "qwen"):
        decoder = metrics["decoders"][name]
        assert ("reconstruction" in decoder) == (weight > 0)
        if weight:
            own = decoder["reconstruction"]
            line = "  reconstruction, NLL a token (and tokens right): " + ", ".join(
                f"{arm} {own[arm]['nll']:.3f} ({own[arm]['accuracy']:.3f})" for arm in ARMS
            )
            assert line in result_table(metrics).splitlines()
            assert line in log
    if not weight:
        assert "reconstruction" not in result_table(metrics) + log
