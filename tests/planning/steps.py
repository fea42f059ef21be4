"""Steps on texts of known lengths."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

from latentwire.data.example import Example
from latentwire.distributed.assembly import Job
from latentwire.training.stages import Stage, StepPlan


def plan(stage: Stage, step: int, setting: Mapping[str, Any]) -> StepPlan:
    """Step ``step`` with texts of ``words`` words, of which every other is a little shorter."""
    rng = random.Random(step)
    words = "the a of is was in on by for at".split()
    size, each = setting["batch"], setting["questions"]
    examples = []
    for number in range(size // each):
        # Padding is what makes attention take a mask.
        num_words = setting["words"] - (number % 2) * 3
        context = " ".join(rng.choice(words) for _ in range(num_words))
        examples += [
            Example(context=context, question=f"what is it in number {q}?", answers=("in the sun",))
            for q in range(each)
        ]
    return dataclasses.replace(stage.plan(step), examples=tuple(examples))


def lengths(job: Job, examples: Sequence[Example]) -> dict[str, int]:
    """The longest of each part of a prompt, in tokens."""
    prompts = job.any_prompts
    tokens = [prompts.text(example) for example in examples]
    return {
        "context": max(len(job.tokenizer.ids(example.context)) for example in examples),
        "before": max(len(one.before) for one in tokens),
        "after": max(len(one.after) for one in tokens),
        "answer": max(len(one.answer) for one in tokens),
    }
