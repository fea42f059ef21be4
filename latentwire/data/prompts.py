"""Prompts as one decoder sees them: text in, token segments out.

A prompt has four segments, ``before | slot | after | answer``. The slot holds the context's own
tokens when the decoder reads text, and the wire when it reads latents; the other three are the
same tokens in both, so no difference between the two can come from the prompt around them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from latentwire.config import Config, ConfigError, DataConfig
from latentwire.data.batch import num_shared
from latentwire.data.chat import INSTRUCTION, chat_frame, turn_end, uses_chat
from latentwire.data.example import Example
from latentwire.data.tokenizers import (
    Remembered,
    decoded,
    frame_ids,
    literal_ends,
    literal_ids,
    special_strings,
    stop_tokens,
)

Carries = Literal["context", "prompt"]
Bos = Literal["auto", "always", "never"]

_DEFAULTS = DataConfig()


@dataclass(frozen=True, kw_only=True)
class PromptTokens:
    """The token segments of one prompt for one decoder."""

    before: tuple[int, ...]
    """Opening tokens: BOS or chat header, and the template up to the slot."""
    slot: tuple[int, ...]
    """The text in the slot; empty when the wire takes its place."""
    after: tuple[int, ...]
    """The template after the slot, up to and with the anchor."""
    answer: tuple[int, ...]
    """The answer's tokens, closed by EOS. BOS is never among them."""
    num_constant: int = 0
    """Tokens that ``before`` begins with in every prompt of this decoder."""
    slot_tokens_cut: int = 0
    """How many slot tokens did not fit the decoder's window."""


class DecoderPrompts:
    """Renders examples for one decoder's tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template: user text with one ``{context}`` and one ``{question}``.
        anchor: the text right before an answer.
        chat: wrap the user text in the tokenizer's chat template.
        bos: whether a prompt opens with BOS; ``auto`` leaves it to the chat template, or without
            one to the tokenizer. There are never two.
        carries: what the slot holds: the ``context`` alone, or the whole ``prompt``.
        window: the decoder's context window in tokens; longer slots are cut at their end.
        max_answer_tokens: answers are cut to this many tokens, EOS not counted.
        max_new_tokens: of a generated answer, where that may be longer.
        stops: tokens after which the model ends an answer too.

    Raises:
        ValueError: the tokenizer cannot do this; the text starts with the setting at fault.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: str = _DEFAULTS.template,
        anchor: str = _DEFAULTS.anchor,
        chat: bool = False,
        bos: Bos = "auto",
        carries: Carries = "context",
        window: int = 1 << 30,
        max_answer_tokens: int = 32,
        max_new_tokens: int = 0,
        stops: Sequence[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.carries = carries
        self.window = window
        self.max_answer_tokens = max_answer_tokens
        self._answer_room = max(max_answer_tokens, max_new_tokens) + 1  # with EOS
        self._halves = template.split("{context}")
        assert len(self._halves) == 2, "the template is validated with the configuration"
        self._header, footer = "", ""
        if chat:
            try:
                self._header, footer = chat_frame(tokenizer)
            except ValueError as error:
                raise ValueError(f"chat: {error}; use false") from None
        self._closing = footer + anchor
        # White space before the slot belongs to the slot's first token, as it would in one string.
        # A decoder's own instruction is never the slot's, which is the same for every decoder.
        first = INSTRUCTION if chat else ""
        first += self._halves[0] if carries == "context" else ""
        self._before_slot = first.rstrip(" ")
        self._slot_space = first[len(self._before_slot) :]
        self._always_first = self._before_slot.split("{question}")[0]
        own_bos = tokenizer.bos_token_id
        if own_bos is None and bos == "always":
            raise ValueError("bos: 'always', but the tokenizer has no BOS token; use auto or never")
        self._header_has_bos = (own_bos,) == frame_ids(tokenizer, self._header)[:1]
        adds_bos = self._header_has_bos if chat else tokenizer("a")["input_ids"][:1] == [own_bos]
        opens = adds_bos if bos == "auto" else bos == "always"
        self.lead: tuple[int, ...] = (own_bos,) if opens else ()
        """What opens a prompt before any text: BOS, or nothing."""
        self._special = special_strings(tokenizer)
        self.eos = turn_end(tokenizer, stops) if chat else int(tokenizer.eos_token_id)
        """The token that ends an answer."""
        self.ends = tuple(dict.fromkeys((self.eos, int(tokenizer.eos_token_id), *stops)))
        """Tokens after which a written answer is over, ``eos`` first."""
        self.pad = int(
            tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        )
        self._of_pieces = Remembered(self._tokenize)
        self.cut_contexts: set[int] = set()
        """Hashes of the contexts that did not fit the window."""
        self.long_questions: set[int] = set()
        """Hashes of the questions that are longer than the window, with the rest of a prompt."""
        self.long_wires: set[int] = set()
        """Hashes of the texts whose wire leaves no room for the rest of a prompt."""
        self.cut_answers: set[int] = set()
        """Hashes of the answers that were longer than ``max_answer_tokens``."""
        self.merged_answers: set[int] = set()
        """Hashes of the answers that the tokenizer would merge with the anchor."""

    def text(self, example: Example, *, context: str | None = None) -> PromptTokens:
        """The prompt with text in its slot; ``context`` replaces the example's own."""
        context = example.context if context is None else context
        tokens = self._text(example, context)
        if tokens.slot_tokens_cut:
            self.cut_contexts.add(hash(context))
        return tokens

    def _text(self, example: Example, context: str) -> PromptTokens:
        slot = self.slot_text(example, context=context)
        tokens = self.wire(example)
        ids = self.plain_ids(self._slot_space + slot) if slot else ()
        room = self.room(tokens)
        return PromptTokens(
            before=tokens.before,
            slot=ids[:room],
            after=tokens.after,
            answer=tokens.answer,
            num_constant=tokens.num_constant,
            slot_tokens_cut=max(0, len(ids) - room),
        )

    def wire(self, example: Example) -> PromptTokens:
        """The prompt with an empty slot, where the wire goes."""
        first, second = self._around_slot(example)
        answer = self._answer_ids(second, example.answers[0].strip())
        if len(answer) > self.max_answer_tokens:
            self.cut_answers.add(hash(example.answers[0]))
            answer = answer[: self.max_answer_tokens]
        before, always = (self._before(user) for user in (first, self._always_first))
        tokens = PromptTokens(
            before=before,
            slot=(),
            after=self._framed("", second, self._closing),
            answer=(*answer, self.eos),
            num_constant=num_shared(before, always),
        )
        if not self.fits(tokens):
            self.long_questions.add(hash(example.question))
        return tokens

    def truncated(self, example: Example, num_tokens: int) -> PromptTokens:
        """The text prompt, its context cut so that the slot is at most ``num_tokens`` long.

        The question is kept. Where the slot holds the whole prompt, the context shrinks until the
        rendered slot fits, which an empty context may still exceed by the question's own length.
        """
        if self.carries == "context":
            full = self.text(example)
            return PromptTokens(
                before=full.before,
                slot=full.slot[:num_tokens],
                after=full.after,
                answer=full.answer,
                num_constant=full.num_constant,
            )
        ids = self.plain_ids(example.context)
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high + 1) // 2
            kept = decoded(self.tokenizer, ids[:middle], clean_up_tokenization_spaces=False)
            if len(self._text(example, kept).slot) <= num_tokens:
                low = middle
            else:
                high = middle - 1
        kept = decoded(self.tokenizer, ids[:low], clean_up_tokenization_spaces=False)
        return self._text(example, kept)

    def slot_text(self, example: Example, *, context: str | None = None) -> str:
        """What the slot stands for, as text: this is what the encoder reads."""
        context = example.context if context is None else context
        if self.carries == "context":
            return context
        first, second = (half.replace("{question}", example.question) for half in self._halves)
        return first + context + second

    def room(self, tokens: PromptTokens) -> int:
        """How many slot positions are left in the window beside the other segments."""
        return max(0, self.window - self.taken(tokens))

    def fits(self, tokens: PromptTokens) -> bool:
        """Whether the window holds the segments beside the slot, and an answer."""
        return self.taken(tokens) <= self.window

    def taken(self, tokens: PromptTokens) -> int:
        """Positions of the segments beside the slot, and of an answer as long as one may be."""
        return len(tokens.before) + len(tokens.after) + self._answer_room

    def plain_ids(self, text: str) -> tuple[int, ...]:
        """Tokens of a bare piece of a user's text, without special ones."""
        return self._framed("", text, "")

    def slot_ends(self, text: str) -> list[tuple[int, int]]:
        """Tokens of ``text`` as it stands in the slot, each with the character after its last."""
        if not text:
            return []
        space = self._slot_space
        ends = literal_ends(self.tokenizer, space + text)
        return [
            (token, max(0, end - len(space)))
            for token, end in zip(self.plain_ids(space + text), ends, strict=True)
        ]

    def read_context(self, example: Example, num_read: int) -> str:
        """The part of the context that is in the first ``num_read`` characters of the slot."""
        opening = self._halves[0].replace("{question}", example.question)
        first = len(opening) if self.carries == "prompt" else 0
        return example.context[: max(0, num_read - first)]

    def num_context_tokens(self, context: str) -> int:
        """Length of a context in this decoder's tokens, whatever its window."""
        return len(self.plain_ids(" " + context))

    def decode(self, ids: Sequence[int]) -> str:
        """Generated ids up to what ends an answer, as text."""
        kept = list(takewhile(lambda token: token not in self.ends, ids))
        return decoded(self.tokenizer, kept, skip_special_tokens=True).strip()

    def _before(self, user: str) -> tuple[int, ...]:
        """The opening tokens up to the end of what the user writes first."""
        opening = self._framed(self._header, user, "")
        # The header is tokenized with its BOS, which may decide how its first word is.
        return self.lead + opening[int(self._header_has_bos) :]

    def _around_slot(self, example: Example) -> tuple[str, str]:
        """The user's text before and after the slot."""
        if self.carries == "prompt":
            return self._before_slot, ""
        halves = (self._before_slot, self._halves[1])
        first, second = (half.replace("{question}", example.question) for half in halves)
        return first, second

    def _answer_ids(self, second: str, answer: str) -> tuple[int, ...]:
        """The answer's tokens as they come in one tokenization with the prompt before them.

        ``after`` is what a decoder has read when it begins to answer, so its own tokens have to
        stand at the start of that tokenization. Where the tokenizer merges across the boundary
        they do not; the answer is then tokenized by itself, and counted.
        """
        text = " " + answer
        if self._has_special(text):
            return self.plain_ids(text)
        stem = self._closing if self._has_special(second) else second + self._closing
        asked, whole = self._framed(stem, "", ""), self._framed(stem + text, "", "")
        if whole[: len(asked)] == asked:
            return whole[len(asked) :]
        self.merged_answers.add(hash(answer))
        return self.plain_ids(text)

    def _has_special(self, text: str) -> bool:
        return any(special in text for special in self._special)

    def _framed(self, opening: str, user: str, closing: str) -> tuple[int, ...]:
        """Tokens of a user's text between pieces of the frame, where special tokens may stand."""
        return self._of_pieces((opening, user, closing))

    def _tokenize(self, key: tuple[str, str, str]) -> tuple[int, ...]:
        opening, user, closing = key
        if self._has_special(user):
            return (
                *frame_ids(self.tokenizer, opening),
                *literal_ids(self.tokenizer, user),
                *frame_ids(self.tokenizer, closing),
            )
        return frame_ids(self.tokenizer, opening + user + closing)


def prompts_for(config: Config, name: str, tokenizer: Any, *, window: int) -> DecoderPrompts:
    """The prompts of the decoder ``name``, as its settings and the data's say.

    Raises:
        ConfigError: its tokenizer cannot do what a setting asks for.
    """
    settings, data = config.decoders[name], config.data
    try:
        return DecoderPrompts(
            tokenizer,
            template=data.template,
            anchor=data.anchor,
            chat=uses_chat(settings, tokenizer),
            bos=settings.bos,
            carries=config.wire.carries,
            window=window,
            max_answer_tokens=data.max_answer_tokens,
            max_new_tokens=config.eval.max_new_tokens,
            stops=stop_tokens(settings),
        )
    except ValueError as error:
        raise ConfigError([f"decoders.{name}.{error}"]) from None
