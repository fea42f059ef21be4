"""An evaluation's further arms and scores: the wire at other ratios, its bytes, and the gist."""

import dataclasses
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from conftest import small_overrides

from latentwire import config_file
from latentwire.config import Config
from latentwire.data.example import Example
from latentwire.data.loader import text_batch
from latentwire.evaluation.arms import ARMS, LATENT, WireArm, arms_of, names, ratio_of
from latentwire.evaluation.gist import gist_scores
from latentwire.evaluation.runner import evaluate
from latentwire.evaluation.table import result_table
from latentwire.objectives.tokens import token_losses
from latentwire.testing import run_distributed

PRIVATE, D_Z, GIST_LEN = 2, 32, 6
RATIOS = (2, 10)
OF_RATIO = ("latent", "truncated_text", "wrong_wire", "zero_wire")
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
    result = evaluate(job, examples, arms=arms_of(RATIOS))
    gists = gist_scores(job, examples, trained_on=TRAINED_ON)
    if result is None or gists is None:
        return None
    metrics, predictions = result
    read = [
        {
            "example": item.example,
            "decoder": item.decoder,
            "arm": item.arm,
            "positions": item.wire_positions,
            "bytes": item.wire_bytes,
            "tokens": item.context_tokens,
            "nll": item.nll_sum,
        }
        for item in predictions
    ]
    return {"metrics": metrics, "read": read, "gists": gists}


@pytest.fixture(scope="module")
def overrides(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return small_overrides(pair, tmp_path_factory.mktemp("evaluation"), *OVERRIDES)


@pytest.fixture(scope="module")
def found(overrides: list[str]) -> dict[str, Any]:
    layout = [*overrides, "placement=colocated"]
    (result,) = run_distributed(evaluated_on_rank, 1, layout)
    return result  # type: ignore[no-any-return]


def test_further_ratios_have_the_arms_that_depend_on_them() -> None:
    further = [f"{arm}@{ratio}" for ratio in RATIOS for arm in OF_RATIO]
    assert names(arms_of(RATIOS)) == [*names(ARMS), *further]
    assert arms_of(()) == ARMS
    controls = {arm.name: arm for arm in arms_of((3,)) if ratio_of(arm.name) == 3}
    assert [arm.ratio for arm in controls.values()] == [3] * 4
    wires = [arm for arm in controls.values() if isinstance(arm, WireArm)]
    assert [arm.name for arm in wires if arm.carries] == ["latent@3"]


def test_each_ratio_is_an_arm_of_its_own_length(
    found: dict[str, Any], overrides: list[str]
) -> None:
    reference = jobs.SingleProcess(overrides)
    examples = some_examples(reference.config, 11)
    latents = {"latent": reference.config.wire.ratio} | {f"latent@{r}": r for r in RATIOS}
    sized = [item for item in found["read"] if item["positions"] is not None]
    assert {item["arm"] for item in sized} == latents.keys(), "a control is no compression"
    for item in sized:
        context = examples[item["example"]].context
        num_latents = -(-len(reference.tokenizer.ids(context)) // latents[item["arm"]])
        # Begin and end are read as well; a decoder reads its own private latents only.
        assert item["positions"] == num_latents + PRIVATE + 2
        assert item["bytes"] == (num_latents + PRIVATE) * D_Z * 2, "bf16"
    assert len(sized) == 11 * 2 * len(latents)
    assert len(found["read"]) == 11 * 2 * len(arms_of(RATIOS))
    for name, decoder in found["metrics"]["decoders"].items():
        assert list(decoder["arms"]) == names(arms_of(RATIOS))
        compression = {}
        for arm, scores in decoder["arms"].items():
            assert ("compression_tokens" in scores) == (arm in latents)
            assert ("normalised_em" in scores) == (arm in latents)
            if arm in latents:
                own = [item for item in sized if (item["decoder"], item["arm"]) == (name, arm)]
                ratios = [item["tokens"] / item["positions"] for item in own]
                compression[arm] = scores["compression_tokens"]
                assert compression[arm] == pytest.approx(sum(ratios) / len(ratios))
        assert compression["latent@2"] < compression["latent"] < compression["latent@10"]
        assert decoder["compression_tokens"] == compression["latent"]
    of_latent = {i["example"]: i["bytes"] for i in sized if i["arm"] == LATENT.name}
    assert found["metrics"]["wire_bytes"] == pytest.approx(sum(of_latent.values()) / 11)


@pytest.mark.parametrize("ratio", RATIOS)
def test_truncated_text_is_as_long_as_the_wire_of_its_ratio(
    ratio: int, found: dict[str, Any], overrides: list[str]
) -> None:
    """By the likelihoods of prompts whose context is cut by hand."""
    reference = jobs.SingleProcess(overrides)
    examples = some_examples(reference.config, 11)
    read = {(item["decoder"], item["arm"], item["example"]): item for item in found["read"]}
    for name, decoder in reference.decoders.items():
        prompts = reference.prompts[name]
        for number, example in enumerate(examples):
            positions = read[name, f"latent@{ratio}", number]["positions"]
            whole = prompts.text(example)
            assert len(whole.slot) > positions
            cut = dataclasses.replace(whole, slot=whole.slot[:positions])
            batch = text_batch([cut], pad=prompts.pad)
            with torch.no_grad():
                losses = token_losses(decoder.answer(batch).logits, batch.targets)
            own = read[name, f"truncated_text@{ratio}", number]
            assert own["nll"] == pytest.approx(float(losses.sum()), rel=1e-4)


def test_controls_of_a_ratio_read_wires_of_that_ratio(found: dict[str, Any]) -> None:
    for decoder in found["metrics"]["decoders"].values():
        for arm in OF_RATIO:
            losses = [decoder["arms"][f"{arm}{at}"]["nll_per_token"] for at in ("", "@2", "@10")]
            assert len(set(losses)) == 3, arm


def arm_of_table(em: float, *, compression: float | None = None, **more: Any) -> dict[str, Any]:
    """What the table shows of an arm."""
    scores: dict[str, Any] = {"em": em, "em_ci95": [em - 0.1, em + 0.1], "f1": em}
    scores |= {"nll_per_token": 2 * em, "first_acc": em, "first_acc_top5": em}
    return scores | ({} if compression is None else {"compression_tokens": compression}) | more


def test_the_table_has_a_line_for_each_ratio() -> None:
    arms = {name: arm_of_table(0.5) for name in names(ARMS)}
    for ratio, em in ((2, 0.625), (10, 0.25)):
        own = [arm_of_table(em, compression=ratio / 2, normalised_em=em / 2 if em > 0.5 else None)]
        own += [arm_of_table(em / number) for number in (2, 4, 8)]
        arms |= {f"{arm}@{ratio}": scores for arm, scores in zip(OF_RATIO, own, strict=True)}
    decoder = {"arms": arms, "normalised_em": None, "normalised_f1": 0.5, "compression_tokens": 4.0}
    metrics = {"decoders": {"a": decoder}, "num_examples": 3, "wire_bytes": 1, "text_bytes": 2}
    lines = result_table(metrics).splitlines()
    assert not any("@" in line for line in lines), "further ratios have a block of their own"
    (start,) = (number for number, line in enumerate(lines) if line.startswith("  at ratio"))
    header, two, ten, last = lines[start : start + 4]
    assert last.startswith("3 examples")
    assert re.split(r"  +", header.strip()) == [
        *("at ratio", "compression", "EM", "95 % interval", "normalised", "NLL/token"),
        *("truncated text", "wrong wire", "zero wire"),
    ]
    assert re.split(r"  +", two.strip()) == [
        *("2", "1.00x", "0.625", "[0.525, 0.725]", "0.312", "1.250", "0.312", "0.156", "0.078")
    ]
    assert re.split(r"  +", ten.strip()) == [
        *("10", "5.00x", "0.250", "[0.150, 0.350]", "n/a", "0.500", "0.125", "0.062", "0.031")
    ]
    assert len(header) == len(two) == len(ten), "aligned"
    plain = {"a": decoder | {"arms": {name: arms[name] for name in names(ARMS)}}}
    assert "at ratio" not in result_table(metrics | {"decoders": plain})


def test_the_table_of_an_evaluation_has_its_ratios(found: dict[str, Any]) -> None:
    lines = result_table(found["metrics"]).splitlines()
    for ratio in RATIOS:
        own = [line for line in lines if line.startswith(f"  {ratio} ")]
        assert len(own) == 2, "one for each decoder"
        for line, decoder in zip(own, found["metrics"]["decoders"].values(), strict=True):
            compression = decoder["arms"][f"latent@{ratio}"]["compression_tokens"]
            assert f" {compression:.2f}x " in line


def test_gist_is_scored_beside_frequencies(found: dict[str, Any], overrides: list[str]) -> None:
    reference = jobs.SingleProcess(overrides)
    texts = list(dict.fromkeys(e.context for e in some_examples(reference.config, 11)))
    assert 2 < len(texts) < 11
    for name, scores in found["gists"].items():
        prompts = reference.prompts[name]
        counts = Counter(t for text in TRAINED_ON for t in prompts.plain_ids(text)[:GIST_LEN])
        vocabulary = len(reference.decoders[name].inputs.whole)
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
    sizes = [
        [{key: value for key, value in item.items() if key != "nll"} for item in one["read"]]
        for one in (first, found)
    ]
    assert sizes[0] == sizes[1]
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
        "wire.pooling=mean",
        "data.samples=64",
        "train.batch_size=32",
        "train.stage_b.steps=50",
        "diagnostics.grad_diag_interval=0",
        "diagnostics.log_interval=1000",
    )
    (found,) = run_distributed(learnt_on_rank, 1, overrides)
    assert found["nll"] < 0.5 * found["unigram_nll"] < 0.5 * found["mean_embedding_nll"]
    assert found["accuracy"] > 0.6
