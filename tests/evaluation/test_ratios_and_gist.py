"""An evaluation's further arms and scores: the wire at other ratios, its bytes, and the gist."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import jobs
import pytest
from conftest import small_overrides

from latentwire import config_file
from latentwire.config import Config
from latentwire.data.example import Example
from latentwire.evaluation.arms import LATENT, arms_of, names
from latentwire.evaluation.gist import gist_scores
from latentwire.evaluation.runner import evaluate
from latentwire.testing import run_distributed

PRIVATE, D_Z, GIST_LEN = 2, 32, 6
TRAINED_ON = ["Mira lives in Orsa. Mira drinks tea.", "Tovan plays the flute.", "Orsa"]
OVERRIDES = [
    f"wire.latent_private_len={PRIVATE}",
    f"wire.d_z={D_Z}",
    "gist.use_gist_head=true",
    f"gist.gist_len={GIST_LEN}",
    "gist.hidden=32",
    "sharding.backend=fsdp",
    "eval.batch_size=8",
    "eval.max_new_tokens=2",
]


def some_examples(config: Config, number: int) -> list[Example]:
    """Of several texts, some of them asked about twice and none in full batches."""
    stage = jobs.make_stage(config)
    examples = [example for step in (1, 2, 3) for example in stage.plan(step).examples]
    return examples[::2][:number]


def evaluated_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, Any] | None:
    config = config_file.load("smoke", overrides)
    job = jobs.make_job(config, world_size)
    examples = some_examples(config, 11)
    arms = [arm for arm in arms_of((2, 10)) if arm.name.startswith("latent")]
    assert names(arms) == ["latent", "latent@2", "latent@10"]
    result = evaluate(job, examples, arms=arms)
    gists = gist_scores(job, examples, trained_on=TRAINED_ON)
    if result is None or gists is None:
        return None
    metrics, predictions = result
    sizes = [
        {
            "example": item.example,
            "decoder": item.decoder,
            "arm": item.arm,
            "positions": item.wire_positions,
            "bytes": item.wire_bytes,
            "tokens": item.context_tokens,
        }
        for item in predictions
    ]
    return {"metrics": metrics, "sizes": sizes, "gists": gists}


@pytest.fixture(scope="module")
def overrides(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return small_overrides(pair, tmp_path_factory.mktemp("evaluation"), *OVERRIDES)


@pytest.fixture(scope="module")
def found(overrides: list[str]) -> dict[str, Any]:
    layout = [*overrides, "placement=colocated"]
    (result,) = run_distributed(evaluated_on_rank, 1, layout)
    return result  # type: ignore[no-any-return]


def test_each_ratio_is_an_arm_of_its_own_length(
    found: dict[str, Any], overrides: list[str]
) -> None:
    reference = jobs.SingleProcess(overrides)
    examples = some_examples(reference.config, 11)
    arms = {"latent": reference.config.wire.ratio, "latent@2": 2, "latent@10": 10}
    for item in found["sizes"]:
        context = examples[item["example"]].context
        num_latents = -(-len(reference.tokenizer.ids(context)) // arms[item["arm"]])
        # Begin and end are read as well; a decoder reads its own private latents only.
        assert item["positions"] == num_latents + PRIVATE + 2
        assert item["bytes"] == (num_latents + PRIVATE) * D_Z * 2, "bf16"
    assert len(found["sizes"]) == 11 * 2 * len(arms)
    for name, decoder in found["metrics"]["decoders"].items():
        assert list(decoder["arms"]) == list(arms)
        for arm, scores in decoder["arms"].items():
            own = [i for i in found["sizes"] if (i["decoder"], i["arm"]) == (name, arm)]
            ratios = [item["tokens"] / item["positions"] for item in own]
            assert scores["compression_tokens"] == pytest.approx(sum(ratios) / len(ratios))
        compression = {arm: s["compression_tokens"] for arm, s in decoder["arms"].items()}
        assert compression["latent@2"] < compression["latent"] < compression["latent@10"]
        assert decoder["compression_tokens"] == compression["latent"]
    of_latent = {i["example"]: i["bytes"] for i in found["sizes"] if i["arm"] == LATENT.name}
    assert found["metrics"]["wire_bytes"] == pytest.approx(sum(of_latent.values()) / 11)


def test_gist_is_scored_beside_frequencies(found: dict[str, Any], overrides: list[str]) -> None:
    reference = jobs.SingleProcess(overrides)
    texts = list(dict.fromkeys(e.context for e in some_examples(reference.config, 11)))
    assert 2 < len(texts) < 11
    for name, scores in found["gists"].items():
        prompts = reference.prompts[name]
        counts = Counter(t for text in TRAINED_ON for t in prompts.plain_ids(text)[:GIST_LEN])
        vocabulary = len(reference.decoders[name].embeddings)
        whole = counts.total() + vocabulary
        targets = [t for text in texts for t in prompts.plain_ids(text)[:GIST_LEN]]
        by_hand = [-math.log((counts[token] + 1) / whole) for token in targets]
        assert scores["unigram_nll"] == pytest.approx(sum(by_hand) / len(by_hand))
        assert all(math.isfinite(value) for value in scores.values())
        assert scores["nll"] > scores["unigram_nll"], "an untrained head knows nothing"
        assert 0 <= scores["accuracy"] < 0.2


@pytest.mark.parametrize("placement", ["separate", "colocated"])
def test_scores_do_not_depend_on_the_layout(
    placement: str, found: dict[str, Any], overrides: list[str]
) -> None:
    layout = [*overrides, f"placement={placement}"]
    first, second = run_distributed(evaluated_on_rank, 2, layout)
    assert second is None
    assert first["sizes"] == found["sizes"]
    for name, scores in found["gists"].items():
        assert first["gists"][name] == pytest.approx(scores, rel=1e-5)
        for arm, expected in found["metrics"]["decoders"][name]["arms"].items():
            again = first["metrics"]["decoders"][name]["arms"][arm]
            assert again["nll_per_token"] == pytest.approx(expected["nll_per_token"], rel=1e-5)


def learnt_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, float]:
    config = config_file.load("smoke", overrides)
    job, stage = jobs.make_job(config, world_size), jobs.make_stage(config, "B")
    trainer = jobs.make_trainer(job)
    for step in range(1, stage.num_steps + 1):
        trainer.step(stage.plan(step))
    examples = [example for step in (1, 2) for example in stage.plan(step).examples]
    texts = [example.context for example in examples]
    scores = gist_scores(job, examples, trained_on=texts)
    assert scores is not None
    return scores["llama"]


@pytest.mark.slow
def test_the_gist_of_a_few_texts_is_learnt(embedded_pair: Path, tmp_path: Path) -> None:
    """Measured 0.57 nats a token where the unigram has 4.31: the wire tells the texts apart."""
    overrides = small_overrides(
        embedded_pair,
        tmp_path,
        "decoders.qwen=null",
        "sharding.backend=fsdp",
        "objectives.kd=0",
        "objectives.gist=1",
        "gist.use_gist_head=true",
        "gist.gist_len=16",
        "wire.d_z=128",
        "data.samples=64",
        "train.batch_size=32",
        "train.stage_b.steps=50",
        "diagnostics.grad_diag_interval=0",
        "diagnostics.log_interval=1000",
    )
    (found,) = run_distributed(learnt_on_rank, 1, overrides)
    assert found["nll"] < 0.5 * found["unigram_nll"] < 0.5 * found["mean_embedding_nll"]
    assert found["accuracy"] > 0.6
