"""A tokenizer's chat template, as the text that stands before and after what the user says."""

from typing import Any

from latentwire.config import DecoderConfig

INSTRUCTION = "Answer the question from the context with a short phrase only.\n"
"""Opens the user's own text: some templates refuse a system message, others bring their own."""

_CONTENT = "<<content>>"
_DATE = "26 Jul 2024"
"""Stands where a template would write today's date, so that a prompt is the same tomorrow."""


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
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template")
    message = [{"role": "user", "content": _CONTENT}]
    try:
        rendered = tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, date_string=_DATE
        )
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the tokenizer's chat template fails: {error}") from None
    header, content, footer = rendered.partition(_CONTENT)
    if not content:
        raise ValueError("the tokenizer's chat template does not show the user's content")
    if _CONTENT in footer:
        raise ValueError("the tokenizer's chat template shows the user's content twice")
    return header, footer
