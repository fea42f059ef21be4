"""A tokenizer's chat template, as the text that stands before and after what the user says."""

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


def turn_end(tokenizer: Any) -> int:
    """The token that the chat template ends an assistant's words with; EOS where it has none.

    It is what a decoder says when its answer is over, and is not EOS in every family.
    """
    reply = {"role": "assistant", "content": _REPLY}
    try:
        rendered = _rendered(tokenizer, [*_ASKED, reply], add_generation_prompt=False)
    except _FAILURES:  # made for a user's words alone
        return int(tokenizer.eos_token_id)
    _, is_shown, closing = rendered.rpartition(_REPLY)
    special = {token for token, said in tokenizer.added_tokens_decoder.items() if said.special}
    special.discard(tokenizer.bos_token_id)
    ends = [token for token in frame_ids(tokenizer, closing) if token in special]
    return ends[0] if is_shown and ends else int(tokenizer.eos_token_id)


def _rendered(tokenizer: Any, messages: list[dict[str, str]], **options: bool) -> str:
    rendered: str = tokenizer.apply_chat_template(
        messages, tokenize=False, date_string=_DATE, **options
    )
    return rendered
