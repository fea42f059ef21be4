"""A tokenizer's chat template, as the text that stands before and after what the user says."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from latentwire.config import DecoderConfig
from latentwire.data.tokenizers import frame_ids

INSTRUCTION = "Answer the question from the context with a short phrase only.\n"
"""Opens the user's own text: some templates refuse a system message, others bring their own."""

_CONTENT = "<<content>>"
_REPLY = "<<reply>>"
_DATE = "26 Jul 2024"
"""Stands where a template would write today's date, so that a prompt is the same tomorrow."""
_ASKED = [{"role": "user", "content": _CONTENT}]
_FAILURES = (TemplateError, ValueError, TypeError, KeyError)
"""Of a template, which is a program of its own."""


def uses_chat(settings: DecoderConfig, tokenizer: Any) -> bool:
    """Whether a decoder's prompts are wrapped in its chat template: as set, or if it has one."""
    return bool(tokenizer.chat_template) if settings.chat is None else settings.chat


def chat_frame(tokenizer: Any) -> tuple[str, str]:
    """What the chat template writes before and after the user's content.

    The second part goes up to where the assistant's own words begin. Whatever the template adds by
    itself, such as BOS or a system message, is in the first.

    Raises:
        ValueError: the template cannot be used; the text says why.
    """
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template")
    try:
        rendered = _rendered(tokenizer, _ASKED, add_generation_prompt=True)
    except _FAILURES as error:
        raise ValueError(f"the tokenizer's chat template fails: {error}") from None
    header, content, footer = rendered.partition(_CONTENT)
    if not content:
        raise ValueError("the tokenizer's chat template does not show the user's content")
    if _CONTENT in footer:
        raise ValueError("the tokenizer's chat template shows the user's content twice")
    return header, footer


def turn_end(tokenizer: Any, stops: Sequence[int] = ()) -> int:
    """The token that the chat template ends an assistant's words with. Where it has none, the one
    that the user's next turn opens with, if the model stops there; else EOS.

    It is what a decoder says when its answer is over, and is not EOS in every family.

    Args:
        stops: as ``stop_tokens``.
    """
    special = {token for token, said in tokenizer.added_tokens_decoder.items() if said.special}
    special.discard(tokenizer.bos_token_id)
    closing = _after_reply(tokenizer, [])
    opening = _after_reply(tokenizer, _ASKED)[:1]
    ends = [t for t in closing if t in special] + [t for t in opening if t in stops]
    return ends[0] if ends else int(tokenizer.eos_token_id)


def _after_reply(tokenizer: Any, more: list[dict[str, str]]) -> tuple[int, ...]:
    """Tokens that the template writes after an assistant's words, with the turns that follow."""
    messages = [*_ASKED, {"role": "assistant", "content": _REPLY}, *more]
    try:
        rendered = _rendered(tokenizer, messages, add_generation_prompt=False)
    except _FAILURES:  # made for a user's words alone
        return ()
    _, is_shown, after = rendered.rpartition(_REPLY)
    return frame_ids(tokenizer, after.partition(_CONTENT)[0]) if is_shown else ()


def _rendered(tokenizer: Any, messages: list[dict[str, str]], **options: bool) -> str:
    rendered: str = tokenizer.apply_chat_template(
        messages, tokenize=False, date_string=_DATE, **options
    )
    return rendered
