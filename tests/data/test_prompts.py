"""Prompts: the segments are one tokenization, and text and wire differ in the slot only."""

import copy
from pathlib import Path
from typing import Any

import pytest
from prompt_cases import CARRIES, EXAMPLES, LONG, chatty, joined, whole_text

from latentwire.config import DecoderConfig
from latentwire.data.example import Example
from latentwire.data.prompts import Carries, DecoderPrompts
from latentwire.data.tokenizers import load_tokenizer


@pytest.fixture(scope="module", params=["llama", "qwen"])
def tokenizer(pair: Path, request: pytest.FixtureRequest) -> Any:
    return load_tokenizer(DecoderConfig(model=str(pair / request.param)))


# --- one string, one tokenization


@pytest.mark.parametrize("carries", CARRIES)
def test_segments_are_the_tokens_of_the_whole_string(tokenizer: Any, carries: Carries) -> None:
    prompts = DecoderPrompts(tokenizer, carries=carries)
    for example in EXAMPLES:
        expected = tokenizer(whole_text(example))["input_ids"] + [tokenizer.eos_token_id]
        assert joined(prompts.text(example)) == expected, example


@pytest.mark.parametrize(
    "template",
    ["{context}\n{question}", "{question} [{context}]", "Say {question} of:{context}!\n\n"],
)
def test_any_template_is_one_tokenization(tokenizer: Any, template: str) -> None:
    prompts = DecoderPrompts(tokenizer, template=template)
    for example in EXAMPLES[:4]:
        user = template.format(context=example.context, question=example.question)
        whole = f"{user}\nAnswer: {example.answers[0]}"
        expected = tokenizer(whole)["input_ids"] + [tokenizer.eos_token_id]
        assert joined(prompts.text(example)) == expected


def test_bos_opens_the_prompt_where_the_family_has_one(tokenizer: Any) -> None:
    opening = [] if tokenizer.bos_token is None else [tokenizer.bos_token_id]
    for carries in CARRIES:
        prompts = DecoderPrompts(tokenizer, carries=carries)
        for example in EXAMPLES:
            tokens = joined(prompts.text(example))
            assert tokens[: len(opening)] == opening
            rest = tokens[len(opening) :]
            assert not set(opening) & set(rest)
            assert tokenizer.decode(rest) == whole_text(example) + tokenizer.eos_token


def test_first_answer_is_supervised_and_closed_by_eos(tokenizer: Any) -> None:
    prompts = DecoderPrompts(tokenizer)
    for example in EXAMPLES:
        answer = prompts.text(example).answer
        assert answer.index(prompts.eos) == len(answer) - 1
        assert tokenizer.decode(answer[:-1]) == f" {example.answers[0]}"
    padded = Example(context="c", question="q", answers=("  spaced out \n", "other"))
    assert tokenizer.decode(prompts.text(padded).answer[:-1]) == " spaced out"


@pytest.mark.parametrize("carries", CARRIES)
@pytest.mark.parametrize("chat", [False, True])
def test_text_and_wire_differ_in_the_slot_only(
    tokenizer: Any, carries: Carries, chat: bool
) -> None:
    prompts = DecoderPrompts(chatty(tokenizer), carries=carries, chat=chat)
    for example in EXAMPLES:
        text, wire = prompts.text(example), prompts.wire(example)
        assert wire.slot == ()
        assert text.slot != ()
        assert (wire.before, wire.after, wire.answer) == (text.before, text.after, text.answer)


def test_braces_in_the_data_are_data(tokenizer: Any) -> None:
    tricky = Example(
        context="Write {question} and {context} or {0}.",
        question="Is {context} or {question} kept?",
        answers=("{context}",),
    )
    for carries in CARRIES:
        prompts = DecoderPrompts(tokenizer, carries=carries)
        assert tokenizer.decode(joined(prompts.text(tricky)), skip_special_tokens=True) == (
            whole_text(tricky)
        )
        assert tricky.context in prompts.slot_text(tricky)


# --- what the slot holds


def test_slot_holds_the_context_or_the_whole_prompt(tokenizer: Any) -> None:
    for example in EXAMPLES:
        context, prompt = (DecoderPrompts(tokenizer, carries=carries) for carries in CARRIES)
        asked = f"Context: {example.context}\nQuestion: {example.question}"
        assert context.slot_text(example) == example.context
        assert prompt.slot_text(example) == asked
        assert tokenizer.decode(context.text(example).slot) == f" {example.context}"
        assert tokenizer.decode(prompt.text(example).slot) == asked
        assert tokenizer.decode(prompt.wire(example).after) == "\nAnswer:"


@pytest.mark.parametrize("carries", CARRIES)
def test_other_context_replaces_the_examples_own(tokenizer: Any, carries: Carries) -> None:
    prompts = DecoderPrompts(tokenizer, carries=carries)
    example, other = EXAMPLES[0], EXAMPLES[3].context
    swapped = Example(context=other, question=example.question, answers=example.answers)
    assert prompts.text(example, context=other) == prompts.text(swapped)
    empty = prompts.text(example, context="")
    assert example.context not in tokenizer.decode(joined(empty))
    assert example.question in tokenizer.decode(joined(empty))
    assert empty.answer == prompts.text(example).answer


def test_context_tokens_are_counted_uncut(tokenizer: Any) -> None:
    whole = DecoderPrompts(tokenizer)
    narrow = DecoderPrompts(tokenizer, window=70)
    for example in EXAMPLES:
        number = whole.num_context_tokens(example.context)
        assert number == len(whole.text(example).slot)
        assert narrow.num_context_tokens(example.context) == number


@pytest.mark.parametrize("carries", CARRIES)
def test_of_a_slot_read_in_part_its_part_of_the_context_is_known(
    tokenizer: Any, carries: Carries
) -> None:
    template = "Asked: {question}\nContext: {context} (end)"
    prompts = DecoderPrompts(tokenizer, carries=carries, template=template)
    for example in EXAMPLES:
        slot = prompts.slot_text(example)
        first = slot.index(example.context)
        assert (first > 0) == (carries == "prompt")
        assert prompts.read_context(example, len(slot)) == example.context
        assert prompts.read_context(example, first + 3) == example.context[:3]
        assert prompts.read_context(example, 0) == ""


def test_longest_answer_that_is_written_has_room(tokenizer: Any) -> None:
    for written, kept in ((3, 8), (20, 20)):
        prompts = DecoderPrompts(tokenizer, window=100, max_answer_tokens=8, max_new_tokens=written)
        tokens = prompts.wire(EXAMPLES[0])
        room = 100 - len(tokens.before) - len(tokens.after) - kept - 1
        assert prompts.room(tokens) == room


# --- truncated text


def test_truncated_keeps_the_question_and_the_first_tokens(tokenizer: Any) -> None:
    prompts = DecoderPrompts(tokenizer)
    full = prompts.text(LONG)
    for count in (0, 1, 7, len(full.slot), len(full.slot) + 5):
        cut = prompts.truncated(LONG, count)
        assert cut.slot == full.slot[:count]
        assert (cut.before, cut.after, cut.answer) == (full.before, full.after, full.answer)


def test_truncated_whole_prompt_shrinks_the_context_only(tokenizer: Any) -> None:
    prompts = DecoderPrompts(tokenizer, carries="prompt")
    full, bare = prompts.text(LONG), prompts.text(LONG, context="")
    assert prompts.truncated(LONG, len(full.slot)) == full
    for count in range(len(bare.slot) + 2, len(full.slot), 9):
        cut = prompts.truncated(LONG, count)
        assert (cut.before, cut.after, cut.answer) == (full.before, full.after, full.answer)
        # As much of the context as fits; one token more may merge into two at the cut.
        assert count - 2 <= len(cut.slot) <= count
        text = tokenizer.decode(cut.slot)
        assert text.endswith(f"\nQuestion: {LONG.question}")
        kept = text.removeprefix("Context: ").split("\n")[0]
        assert LONG.context.startswith(kept)
    assert prompts.truncated(LONG, 3) == bare, "the question stays, even where it does not fit"


# --- windows


@pytest.mark.parametrize("carries", CARRIES)
def test_slot_is_cut_to_the_window_and_counted(tokenizer: Any, carries: Carries) -> None:
    full = DecoderPrompts(tokenizer, carries=carries, max_answer_tokens=4).text(LONG)
    frame = len(full.before) + len(full.after) + 4 + 1
    for window in (frame, frame + 1, frame + 10, frame + len(full.slot)):
        prompts = DecoderPrompts(tokenizer, carries=carries, window=window, max_answer_tokens=4)
        tokens = prompts.text(LONG)
        assert len(joined(tokens)) <= window
        assert tokens.slot == full.slot[: window - frame]
        assert tokens.slot_tokens_cut == len(full.slot) - len(tokens.slot)
        assert (tokens.before, tokens.after, tokens.answer) == (
            full.before,
            full.after,
            full.answer,
        )
        assert prompts.room(prompts.wire(LONG)) == window - frame
    assert tokens.slot_tokens_cut == 0, "the last window holds everything"
    tiny = DecoderPrompts(tokenizer, carries=carries, window=3)
    assert tiny.text(LONG).slot == ()
    assert tiny.text(LONG).slot_tokens_cut == len(full.slot)
    assert tiny.room(tiny.wire(LONG)) == 0


@pytest.mark.parametrize("carries", CARRIES)
def test_a_cut_context_is_counted_once_however_it_is_truncated(
    tokenizer: Any, carries: Carries
) -> None:
    full = DecoderPrompts(tokenizer, carries=carries, max_answer_tokens=4).text(LONG)
    window = len(full.before) + len(full.after) + 4 + 1 + len(full.slot) // 2
    prompts = DecoderPrompts(tokenizer, carries=carries, window=window, max_answer_tokens=4)
    prompts.text(LONG)
    prompts.truncated(LONG, len(full.slot) // 3)
    assert prompts.cut_contexts == {hash(LONG.context)}


def test_answers_are_cut_before_their_eos(tokenizer: Any) -> None:
    long_answer = Example(context="c", question="q", answers=(LONG.context,))
    full = DecoderPrompts(tokenizer, max_answer_tokens=10_000).text(long_answer).answer
    for most in (1, 5, len(full) - 1, len(full)):
        answer = DecoderPrompts(tokenizer, max_answer_tokens=most).text(long_answer).answer
        assert answer == (*full[:-1][:most], full[-1])


# --- decoding


def test_decoding_stops_at_eos(tokenizer: Any) -> None:
    prompts = DecoderPrompts(tokenizer)
    ids = list(prompts.plain_ids(" Orsa and 12 \u00e9"))
    rest = [prompts.eos, *prompts.plain_ids(" more"), prompts.eos]
    assert prompts.decode(ids) == prompts.decode(ids + rest) == "Orsa and 12 \u00e9"
    assert prompts.decode([prompts.eos]) == prompts.decode([]) == ""
    assert prompts.decode([*ids, prompts.pad, prompts.pad]) == "Orsa and 12 \u00e9"


def test_gold_answers_decode_to_themselves(tokenizer: Any) -> None:
    prompts = DecoderPrompts(tokenizer)
    for example in EXAMPLES:
        assert prompts.decode(prompts.text(example).answer) == example.answers[0]


def test_padding_falls_back_to_eos(tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    assert DecoderPrompts(bare).pad == tokenizer.eos_token_id
    assert DecoderPrompts(tokenizer).pad == tokenizer.pad_token_id != tokenizer.eos_token_id
