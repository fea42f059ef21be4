"""What stands around a prompt: chat templates, the ends of answers, BOS, special tokens."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from prompt_cases import CARRIES, EXAMPLES, chatty, joined

from latentwire.config import Config, ConfigError, DataConfig, DecoderConfig, WireConfig
from latentwire.data.chat import INSTRUCTION, uses_chat
from latentwire.data.example import Example
from latentwire.data.prompts import Bos, Carries, DecoderPrompts, prompts_for
from latentwire.data.tokenizers import load_tokenizer, stop_tokens


@pytest.fixture(scope="module", params=["llama", "qwen"])
def tokenizer(pair: Path, request: pytest.FixtureRequest) -> Any:
    return load_tokenizer(DecoderConfig(model=str(pair / request.param)))


# --- chat


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
