"""Examples and what is asked of prompts, for the tests of prompts."""

import copy
from typing import Any

from latentwire.data.example import Example
from latentwire.data.profiles import document
from latentwire.data.prompts import Carries, PromptTokens

CARRIES: tuple[Carries, ...] = ("context", "prompt")
EXAMPLES = [example for i in range(12) for example in document(0, "test", i).examples[:2]] + [
    Example(context="34 apples cost 5.", question="How much are 34 apples?", answers=("5", "five")),
    Example(
        context="H\u00e9l\u00e8ne lit \u201cZ\u201d \U0001f600",
        question="O\u00f9?",
        answers=("\u00e0 l'\u00e9t\u00e9",),
    ),
    Example(context="line\n\nline", question="two  spaces?", answers=("a, b; c",)),
]
LONG = max(EXAMPLES, key=lambda example: len(example.context))


def joined(tokens: PromptTokens) -> list[int]:
    return [*tokens.before, *tokens.slot, *tokens.after, *tokens.answer]


def whole_text(example: Example) -> str:
    return f"Context: {example.context}\nQuestion: {example.question}\nAnswer: {example.answers[0]}"


def chatty(tokenizer: Any) -> Any:
    """A copy with a chat template, which writes BOS itself where there is one."""
    chat = copy.deepcopy(tokenizer)
    bos = "{{ bos_token }}" if tokenizer.bos_token else ""
    chat.chat_template = (
        bos + "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return chat
