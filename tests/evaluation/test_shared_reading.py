"""What arms share is what each of them would have read alone; batches go by length."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import jobs
import pytest
import torch
from conftest import small_overrides

from latentwire import config_file
from latentwire.data.example import Example
from latentwire.data.loader import decoder_batch, global_batch, text_batch
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.decoders.generation import Writers, greedy
from latentwire.evaluation.answering import answers
from latentwire.evaluation.arms import ARMS, TextArm, WireArm, arms_of, names
from latentwire.evaluation.runner import by_length, evaluate
from latentwire.objectives.tokens import token_losses
from latentwire.testing import run_distributed
from latentwire.wire.controls import wrong_slots

RATIOS = (2, 10)
NUM_EXAMPLES, BATCH, NEW_TOKENS = 11, 8, 4
OVERRIDES = [
    "sharding.backend=fsdp",
    "placement=colocated",
    f"eval.batch_size={BATCH}",
    f"eval.max_new_tokens={NEW_TOKENS}",
]


def some_examples(config: Any) -> list[Example]:
    stage = jobs.make_stage(config)
    return [e for step in (1, 2, 3) for e in stage.plan(step).examples][::2][:NUM_EXAMPLES]


def by_hand(
    job: Any, name: str, arm: Any, examples: list[Example], wrong: Any
) -> list[tuple[str, float]]:
    """What an arm's prompts are answered with and the loss of each right answer, from a reading for
    the one and a reading for the other."""
    decoder, prompts = job.decoders[name], job.prompts[name]
    if isinstance(arm, TextArm):
        tokens = [
            arm.prompt(
                prompts, each, job.tokenizer.num_positions(prompts.slot_text(each), arm.ratio)
            )
            for each in examples
        ]
        asked = text_batch(tokens, pad=prompts.pad, answers=False)
        answered, wire = text_batch(tokens, pad=prompts.pad), None
    else:
        replace = wrong if arm.wrong else None
        batch = global_batch(examples, prompts, replace=replace, ratio=arm.ratio)
        latents = job.latents(batch)
        latents = latents if arm.change is None else arm.change(latents)
        own, other = (
            decoder_batch(batch, prompts, job.tokenizer, part=0, num_parts=1, answers=with_them)
            for with_them in (True, False)
        )
        answered, asked = own.latents_prompt, other.latents_prompt
        wire = job.inject(name, latents, own)
    written = greedy(decoder, asked, ends=prompts.ends, max_new_tokens=NEW_TOKENS, wire=wire)
    losses = token_losses(decoder.answer(answered, wire).logits, answered.targets)
    sums = [float(each.sum()) for each in losses.split(answered.target_mask.sum(1).tolist())]
    return list(zip(map(prompts.decode, written.tolist()), sums, strict=True))


@torch.no_grad()
def compared_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, Any]:
    config = config_file.load("smoke", overrides)
    job = jobs.make_job(config, world_size)
    examples, arms = some_examples(config), arms_of(RATIOS)
    with patch.object(
        FrozenDecoder, "read_prefixes", autospec=True, side_effect=FrozenDecoder.read_prefixes
    ) as read:
        result = evaluate(job, examples, arms=arms)
    assert result is not None
    wrong = wrong_slots(examples, job.any_prompts, seed=config.run.seed)
    found = {(p.example, p.decoder, p.arm): (p.prediction, p.nll_sum) for p in result[1]}
    rows = [
        [arm.name, *found[number, name, arm.name], *wanted]
        for name in job.decoders
        for arm in arms
        for number, wanted in enumerate(by_hand(job, name, arm, examples, wrong))
    ]
    places = [(p.example, p.decoder, p.arm) for p in result[1]]
    return {"rows": rows, "places": places, "num_read": read.call_count}


@pytest.mark.parametrize("carries", ["context", "prompt"])
def test_every_arm_is_what_its_prompts_say_alone(carries: str, pair: Path, tmp_path: Path) -> None:
    """Shared prefixes, zero wires, encodings and drafts, against one reading for each question."""
    arms = arms_of(RATIOS)
    overrides = small_overrides(pair, tmp_path, *OVERRIDES, f"wire.carries={carries}")
    (found,) = run_distributed(compared_on_rank, 1, overrides)
    expected = [
        [i, d, a] for i in range(NUM_EXAMPLES) for d in ("llama", "qwen") for a in names(arms)
    ]
    assert found["places"] == expected, "in the order of the examples, each once"
    for arm, text, loss, wanted, wanted_loss in found["rows"]:
        assert text == wanted, arm
        assert loss == pytest.approx(wanted_loss, rel=1e-4), arm
    num_wires = sum(isinstance(arm, WireArm) for arm in arms)
    num_texts = 1 if carries == "context" else len(arms) - num_wires
    assert found["num_read"] == 2 * 2 * (num_wires + num_texts), "decoders, batches, readings"


def test_zero_wires_of_one_length_are_read_once(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(pair, tmp_path, *OVERRIDES)
    (found,) = run_distributed(zero_on_rank, 1, overrides)
    together, apart = found["together"], found["apart"]
    assert together["nll"] == pytest.approx(apart["nll"], rel=1e-5)
    assert together["num_prefixes"] < apart["num_prefixes"]


def zero_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, Any]:
    config = config_file.load("smoke", [*overrides, "wire.ratio=40"])
    job = jobs.make_job(config, world_size)
    (zero,) = (arm for arm in ARMS if isinstance(arm, WireArm) and arm.change)
    assert zero.is_alike
    found = {}
    for name, arm in {"together": zero, "apart": dataclasses.replace(zero, is_alike=False)}.items():
        with patch.object(
            FrozenDecoder, "read_prefixes", autospec=True, side_effect=FrozenDecoder.read_prefixes
        ) as read:
            result = evaluate(job, some_examples(config), arms=[arm])
        assert result is not None
        num_prefixes = sum(len(call.args[1].prefix_ids) for call in read.call_args_list)
        found[name] = {"nll": [p.nll_sum for p in result[1]], "num_prefixes": num_prefixes}
    return found


@pytest.mark.parametrize("max_new_tokens", [1, 3, 8])
@torch.no_grad()
def test_the_right_answer_is_a_draft_that_changes_nothing(
    max_new_tokens: int, pair: Path, tmp_path: Path
) -> None:
    """Right answers with which the decoder agrees not at all, for a while, and to the end."""
    reference = jobs.SingleProcess(small_overrides(pair, tmp_path))
    decoder, prompts = reference.decoders["llama"], reference.prompts["llama"]
    examples = some_examples(reference.config)[:6]
    plain = [prompts.text(example) for example in examples]
    asked = text_batch(plain, pad=prompts.pad, answers=False)
    free = greedy(decoder, asked, ends=[-1], max_new_tokens=8).tolist()
    # What one row says in the end is everyone's EOS.
    eos = free[0][4]
    prompts.ends = ends = (eos,)
    expected = greedy(decoder, asked, ends=ends, max_new_tokens=max_new_tokens)
    wanted = [prompts.decode(row) for row in expected.tolist()]
    own = [row[: row.index(eos)] if eos in row else row for row in free]
    for agreed in range(9):
        tokens = [
            dataclasses.replace(
                # Up to its own end, as far as it is to agree; another token then.
                prompt,
                answer=(
                    *row[:agreed],
                    *([] if agreed >= len(row) else [row[agreed] + 1 if row[agreed] < 50 else 5]),
                    eos,
                ),
            )
            for prompt, row in zip(plain, own, strict=True)
        ]
        batch = text_batch(tokens, pad=prompts.pad)
        context = decoder.read(batch, None)
        writers = Writers(decoder, ends=ends)
        said = answers(decoder, batch, context, writers, ends=ends, max_new_tokens=max_new_tokens)
        writers.finish()
        found = said.reads(prompts)
        assert [read.text for read in found] == wanted, agreed
        losses = token_losses(decoder.answer(batch).logits, batch.targets)
        assert [len(read.losses) for read in found] == [len(each.answer) for each in tokens]
        flat = torch.tensor([loss for read in found for loss in read.losses])
        torch.testing.assert_close(flat, losses)
        assert all(
            read.first == (agreed > 0 or not row) for read, row in zip(found, own, strict=True)
        )


def test_the_longest_texts_come_first_with_all_their_questions() -> None:
    texts = ["bb", "dddd", "bb", "a", "ccc", "dddd", "xx"]
    job: Any = SimpleNamespace(
        any_prompts=SimpleNamespace(slot_text=lambda example: example.context),
        tokenizer=SimpleNamespace(ids=list),
    )
    examples = [Example(context=text, question="?", answers=("a",)) for text in texts]
    assert by_length(job, examples) == [1, 5, 4, 0, 2, 6, 3]
