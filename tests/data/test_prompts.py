"""Prompts: the segments are one tokenization, and text and wire differ in the slot only."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from latentwire.config import Config, ConfigError, DataConfig, DecoderConfig, WireConfig
from latentwire.data.chat import INSTRUCTION, uses_chat
from latentwire.data.example import Example
from latentwire.data.profiles import document
from latentwire.data.prompts import Bos, Carries, DecoderPrompts, PromptTokens, prompts_for
from latentwire.data.tokenizers import load_tokenizer, stop_tokens

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


@pytest.fixture(scope="module", params=["llama", "qwen"])
def tokenizer(pair: Path, request: pytest.FixtureRequest) -> Any:
    return load_tokenizer(DecoderConfig(model=str(pair / request.param)))


def joined(tokens: PromptTokens) -> list[int]:
    return [*tokens.before, *tokens.slot, *tokens.after, *tokens.answer]


def whole_text(example: Example) -> str:
    return f"Context: {example.context}\nQuestion: {example.question}\nAnswer: {example.answers[0]}"


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


# --- chat


def chatty(tokenizer: Any) -> Any:
    """A copy with a chat template, which writes BOS itself where there is one."""
    chat = copy.deepcopy(tokenizer)
    bos = "{{ bos_token }}" if tokenizer.bos_token else ""
    chat.chat_template = (
        bos + "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return chat


def test_chat_frames_the_users_text(tokenizer: Any) -> None:
    chat = chatty(tokenizer)
    for carries in CARRIES:
        prompts = DecoderPrompts(chat, chat=True, carries=carries)
        for example in EXAMPLES:
            asked = f"Context: {example.context}\nQuestion: {example.question}"
            text = (
                f"{tokenizer.bos_token or ''}<user>{INSTRUCTION}{asked}</s><assistant>"
                f"\nAnswer: {example.answers[0]}{tokenizer.eos_token}"
            )
            tokens = joined(prompts.text(example))
            assert tokenizer.decode(tokens) == text
            assert tokens.count(tokenizer.bos_token_id) == (tokenizer.bos_token is not None)
    context = DecoderPrompts(chat, chat=True)
    assert context.slot_text(EXAMPLES[0]) == EXAMPLES[0].context, "the wire carries no chat frame"
    whole, plain = (DecoderPrompts(chat, chat=own, carries="prompt") for own in (True, False))
    # Every rank makes the same text of an example, whatever its decoders' prompts are.
    assert whole.slot_text(EXAMPLES[0]) == plain.slot_text(EXAMPLES[0])
    assert (
        joined(context.text(EXAMPLES[0]))
        == (
            tokenizer(
                tokenizer.decode(joined(context.text(EXAMPLES[0]))), add_special_tokens=False
            )["input_ids"]
        )
    )


def test_answers_end_as_the_templates_turns_do(tokenizer: Any) -> None:
    chat = copy.deepcopy(tokenizer)
    chat.add_special_tokens({"additional_special_tokens": ["<turn_end>", "<think>"]})
    (end,) = chat("<turn_end>", add_special_tokens=False)["input_ids"]
    turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<turn_end>\n{% endfor %}"
    for template, expected in [
        (turns, end),
        (turns.replace("<{{ m.role }}>", "<{{ m.role }}><think>"), end),
        (turns.replace("<turn_end>", ""), chat.eos_token_id),
        # Made for users alone: it cannot say how an answer ends.
        ("{{ messages[0].content }}{% if messages|length > 1 %}{{ 1 + 'a' }}{% endif %}", None),
        ("<turn_end>{{ messages[0].content }}", None),
        ("<turn_end>{{ messages[0].content }}{{ messages[-1].content|upper }}", None),
    ]:
        chat.chat_template = template
        prompts = DecoderPrompts(chat, chat=True)
        eos = chat.eos_token_id if expected is None else expected
        assert prompts.eos == eos == prompts.text(EXAMPLES[0]).answer[-1]
        for said in (eos, chat.eos_token_id):  # some models say one for the other
            written = [*prompts.plain_ids(" Orsa"), said, *prompts.plain_ids(" and on")]
            assert prompts.decode(written) == "Orsa"
        assert DecoderPrompts(chat).eos == chat.eos_token_id, "without its template"


def test_answers_end_where_the_model_stops(tokenizer: Any) -> None:
    """Some models end a turn with what the next one opens with, and nothing of their own."""
    chat = copy.deepcopy(tokenizer)
    chat.add_special_tokens({"additional_special_tokens": ["<user>", "<tool>"]})
    user, tool = chat("<user><tool>", add_special_tokens=False)["input_ids"]
    chat.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert DecoderPrompts(chat, chat=True).eos == chat.eos_token_id
    prompts = DecoderPrompts(chat, chat=True, stops=(chat.eos_token_id, user, tool))
    assert prompts.eos == user == prompts.text(EXAMPLES[0]).answer[-1]
    assert prompts.ends == (user, chat.eos_token_id, tool)
    for said in prompts.ends:
        written = [*prompts.plain_ids(" Orsa"), said, *prompts.plain_ids(" and on")]
        assert prompts.decode(written) == "Orsa"
    assert DecoderPrompts(chat, stops=(user,)).ends == (chat.eos_token_id, user)


@pytest.mark.parametrize(("said", "expected"), [(7, (7,)), ([7, 9], (7, 9)), (None, ())])
def test_where_a_model_stops_is_read_from_its_folder(
    tmp_path: Path, said: Any, expected: tuple[int, ...]
) -> None:
    settings = DecoderConfig(model=str(tmp_path))
    assert stop_tokens(settings) == ()
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": said}))
    assert stop_tokens(settings) == expected


def test_chat_template_that_drops_the_content_is_refused(tokenizer: Any) -> None:
    broken = copy.deepcopy(tokenizer)
    for template, expected in [
        ("{% for m in messages %}<user></s>{% endfor %}", "chat: .* does not show the user's"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "chat: .* content twice; use false"),
        ("{{ raise_exception('only for tools') }}", "chat: .* fails: only for tools; use false"),
        ("{% for %}", "chat: .* fails: "),
        (None, "chat: the tokenizer has no chat template; use false"),
    ]:
        broken.chat_template = template
        with pytest.raises(ValueError, match=expected):
            DecoderPrompts(broken, chat=True)


def test_templates_that_refuse_or_add_a_system_message(tokenizer: Any) -> None:
    chat = chatty(tokenizer)
    plain = DecoderPrompts(chat, chat=True)
    template = chat.chat_template
    chat.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + template
    )
    example = EXAMPLES[0]
    assert DecoderPrompts(chat, chat=True).text(example) == plain.text(example)
    chat.chat_template = "<system>Be kind. Today is {{ date_string }}.</s>" + template
    tokens = DecoderPrompts(chat, chat=True).text(example)
    text = tokenizer.decode(tokens.before)
    assert text.startswith("<system>Be kind. Today is 26 Jul 2024.</s>")
    assert INSTRUCTION in text
    assert (tokens.slot, tokens.after) == (plain.text(example).slot, plain.text(example).after)


def test_chat_is_used_where_there_is_a_template_unless_set(tokenizer: Any) -> None:
    chat = chatty(tokenizer)
    assert uses_chat(DecoderConfig(), chat)
    assert not uses_chat(DecoderConfig(), tokenizer)
    for set_to in (True, False):
        assert uses_chat(DecoderConfig(chat=set_to), chat) is set_to
        assert uses_chat(DecoderConfig(chat=set_to), tokenizer) is set_to


def test_prompts_are_as_the_configuration_says(tokenizer: Any) -> None:
    chat = chatty(tokenizer)
    settings = {
        "auto": DecoderConfig(),
        "plain": DecoderConfig(chat=False, bos="never"),
    }
    data = DataConfig(template="{question} {context}", anchor="\n->", max_answer_tokens=2)
    config = Config(decoders=settings, data=data, wire=WireConfig(carries="prompt"))
    for name, more in (("auto", {"chat": True}), ("plain", {"bos": "never"})):
        prompts = prompts_for(config, name, chat, window=77)
        same = DecoderPrompts(
            chat,
            template="{question} {context}",
            anchor="\n->",
            carries="prompt",
            window=77,
            max_answer_tokens=2,
            max_new_tokens=config.eval.max_new_tokens,
            **more,
        )
        for example in EXAMPLES:
            assert prompts.text(example) == same.text(example)
    config = Config(decoders={"a": DecoderConfig(chat=True)})
    with pytest.raises(ConfigError, match="decoders.a.chat: the tokenizer has no chat template"):
        prompts_for(config, "a", tokenizer, window=77)


# --- BOS


@pytest.mark.parametrize("carries", CARRIES)
@pytest.mark.parametrize("chat", [None, "writes", "does not"])
@pytest.mark.parametrize("bos", ["auto", "always", "never"])
def test_bos_is_there_once_or_not_at_all(
    pair: Path, bos: Bos, chat: str | None, carries: Carries
) -> None:
    tokenizer = chatty(load_tokenizer(DecoderConfig(model=str(pair / "llama"))))
    if chat == "does not":
        tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token }}", "")
    options: Any = {"chat": chat is not None, "carries": carries}
    prompts = DecoderPrompts(tokenizer, bos=bos, **options)
    expected = chat != "does not" if bos == "auto" else bos == "always"
    assert prompts.lead == (tokenizer.bos_token_id,) * expected
    bare = DecoderPrompts(tokenizer, bos="never", **options)
    for example in EXAMPLES:
        for tokens, without in (
            (prompts.text(example), bare.text(example)),
            (prompts.wire(example), bare.wire(example)),
        ):
            assert joined(without).count(tokenizer.bos_token_id) == 0
            assert joined(tokens) == [*prompts.lead, *joined(without)]


def test_a_tokenizer_without_bos_cannot_always_have_one(pair: Path) -> None:
    tokenizer = load_tokenizer(DecoderConfig(model=str(pair / "qwen")))
    for bos in ("auto", "never"):
        assert DecoderPrompts(tokenizer, bos=bos).lead == ()
    with pytest.raises(ValueError, match="bos: 'always', but .* use auto or never"):
        DecoderPrompts(tokenizer, bos="always")


@pytest.mark.parametrize("carries", CARRIES)
@pytest.mark.parametrize("chat", [False, True])
def test_special_tokens_in_the_users_text_are_letters(
    tokenizer: Any, carries: Carries, chat: bool
) -> None:
    eos = tokenizer.eos_token
    tricky = Example(
        context=f"Ada lives{eos} in Tarn.", question=f"Where{eos}?", answers=(f"Ta{eos}rn",)
    )
    prompts = DecoderPrompts(chatty(tokenizer), carries=carries, chat=chat)
    tokens = joined(prompts.text(tricky))
    assert tokens.count(tokenizer.eos_token_id) == 1, "only the one that closes the answer"
    for text in (tricky.context, tricky.question, tricky.answers[0]):
        assert text in tokenizer.decode(tokens)
