"""The embedded pair and its builder: lossless tokenizers, honest packing, the same build twice."""

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import narrow
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
)

from latentwire import config_file
from latentwire.config import DecoderConfig
from latentwire.data import profiles_hard, tiny
from latentwire.data.profiles import Document, document
from latentwire.data.prompts import DecoderPrompts
from latentwire.data.tokenizers import load_tokenizer

FAMILIES = ["llama", "qwen"]
MODEL_CLASSES = {"llama": LlamaForCausalLM, "qwen": Qwen2ForCausalLM}
SIZES = {size: tiny.load_specs(config_file.PACKAGED / f"{size}.yaml") for size in tiny.sizes()}
SPECS = SIZES["tiny"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def loaded(pair: Path, family: str) -> Any:
    """The tokenizer as a user gets it, from the saved folder."""
    return load_tokenizer(DecoderConfig(model=str(pair / family)))


@pytest.fixture(scope="module")
def built(family: str) -> PreTrainedTokenizerFast:
    """The tokenizer as the builder makes it, never saved."""
    return tiny.build_tokenizer(SPECS[family], seed=0)


# --- specifications


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_the_same_two_families_and_starts_on_plain_profiles(size: str) -> None:
    assert set(SIZES) == {"tiny", "tiny_hard", "small"}
    assert {name: spec.model_type for name, spec in SIZES[size].items()} == {
        name: spec.model_type for name, spec in SPECS.items()
    }
    for spec in SIZES[size].values():
        plain, *later = spec.phases
        assert plain.hard_share == 0
        assert all(0.5 <= phase.hard_share <= 1 for phase in later)
        assert min(phase.steps for phase in spec.phases) >= 500
        if later:
            assert later[-1].hard_share < 1, "what was learnt of the plain ones is kept"
            assert later[-1].hard_shape == profiles_hard.Shape(facts=(10, 25))
    assert len(SIZES["small"]["llama"].phases) == 2, "the larger pair reads the harder ones too"


def test_the_pair_for_the_harder_profiles_starts_as_the_embedded_pair(family: str) -> None:
    plain, hard = SPECS[family], SIZES["tiny_hard"][family]
    first, *later = hard.phases
    assert dataclasses.replace(hard, phases=(first,)) == plain
    alone = profiles_hard.Shape(facts=(2, 2), people=(2, 2), friends=False)
    assert later[0].hard_shape == alone, "nothing tells the answer but whose it is"
    assert later[0].documents == 48


def test_sizes_have_the_parameters_their_readers_count_on(family: str) -> None:
    counts = {}
    for size, specs in SIZES.items():
        tokenizer = tiny.build_tokenizer(specs[family], seed=0)
        assert len(tokenizer) == specs[family].tokenizer["vocab_size"]
        with torch.device("meta"):
            model = tiny.build_model(specs[family], tokenizer)
        assert type(model) is MODEL_CLASSES[family]
        counts[size] = model.num_parameters()
    assert counts["tiny_hard"] == counts["tiny"]
    assert counts["tiny"] == {"llama": 1_316_216, "qwen": 1_178_656}[family], "as README says"
    assert counts["small"] == {"llama": 24_138_240, "qwen": 23_010_112}[family], "as README says"
    assert 20e6 <= counts["small"] <= 40e6


# --- tokenizers


def texts() -> list[str]:
    rng = random.Random(0)
    latin = "".join(map(chr, range(256)))
    found = [latin, latin[::-1], *latin, "\0", "a\0\0b", "\r\n\t \x0b\x0c\x1b[0m"]
    found += [" ", "  lead", "trail  ", "\n\n\n", "a  b   c", "\u00a0\u2003\u200b\u2028\ufeff"]
    found += ["don't I'LL we've", " , . ! 's", "1234567890 3.14 1e-4 \u0663\u00b2\u2167"]
    found += [
        "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 e\u0301 \u00e9"
    ]
    found += ["<|begin_of_text|> <|end_of_text|><|pad|> <|im_end|>x<|endoftext|>", "\U0010ffff"]
    # Every byte that UTF-8 can hold: leading bytes of two, three and four.
    found.append("".join(map(chr, [*range(0x80, 0x800, 0x3F), *range(0x800, 0xD800, 0x3FF)])))
    found.append("".join(map(chr, range(0x10000, 0x110000, 0xFFF))))
    for length in (1, 2, 3, 10, 200):
        for _ in range(30):
            points = [rng.choice([0x80, 0x800, 0x10000, 0x110000]) for _ in range(length)]
            codes = [rng.randrange(limit) for limit in points]
            found.append("".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000))
    return found


def test_samples_hold_every_byte_of_utf8() -> None:
    never = {0xC0, 0xC1, *range(0xF5, 0x100)}
    assert {byte for text in texts() for byte in text.encode()} == set(range(256)) - never


def lost(tokenizer: Any) -> list[str]:
    """The texts that do not come back as they were."""
    every = texts()
    tokens = tokenizer(every, add_special_tokens=False)["input_ids"]
    return [text for text, ids in zip(every, tokens, strict=True) if tokenizer.decode(ids) != text]


def test_built_tokenizer_loses_nothing(built: PreTrainedTokenizerFast) -> None:
    assert lost(built) == []


def test_loaded_tokenizer_loses_nothing(loaded: Any) -> None:
    assert lost(loaded) == []


def test_saving_changes_no_token(built: PreTrainedTokenizerFast, loaded: Any) -> None:
    every = texts() + [document(0, "test", i).context for i in range(50)]
    assert loaded(every)["input_ids"] == built(every)["input_ids"]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "model_max_length"):
        assert getattr(loaded, name) == getattr(built, name), name


def test_building_twice_gives_the_same_tokenizer(
    pair: Path, family: str, built: PreTrainedTokenizerFast
) -> None:
    """``pair`` built its own, earlier in this process."""
    saved = json.loads((pair / family / "tokenizer.json").read_text(encoding="utf-8"))
    again = json.loads(built.backend_tokenizer.to_str())
    assert again["model"] == saved["model"], "vocabulary and merges"
    assert len(built) == SPECS[family].tokenizer["vocab_size"]


@pytest.mark.parametrize("size", SIZES)
def test_families_cut_text_differently(size: str) -> None:
    first, second = (tiny.build_tokenizer(SIZES[size][name], seed=0) for name in FAMILIES)
    contexts = [document(0, "test", index).context for index in range(300)]
    totals = [
        sum(len(ids) for ids in tokenizer(contexts, add_special_tokens=False)["input_ids"])
        for tokenizer in (first, second)
    ]
    assert max(totals) >= 1.1 * min(totals), totals
    assert set(first.get_vocab()) != set(second.get_vocab())
    assert first.bos_token_id is not None
    assert second.bos_token_id is None


# --- packing


@pytest.fixture(scope="module")
def docs() -> list[Document]:
    """Of different lengths, so that one is padded."""
    return [document(0, "test", 0, min_facts=2, max_facts=2), document(0, "test", 1, min_facts=8)]


def test_packed_questions_read_as_they_would_alone(
    pair: Path, family: str, loaded: Any, docs: list[Document]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(pair / family).eval()
    prompts = DecoderPrompts(loaded)
    ids, positions, mask, _, _ = tiny._batch(prompts, docs)
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions, attention_mask=mask).logits
    for row, doc in enumerate(docs):
        place = 0
        for number, example in enumerate(doc.examples):
            tokens = prompts.text(example)
            context, asked = [*tokens.before, *tokens.slot], [*tokens.after, *tokens.answer]
            with torch.no_grad():
                alone = model(input_ids=torch.tensor([[*context, *asked]])).logits[0]
            if number == 0:
                place = len(context)
                torch.testing.assert_close(packed[row, :place], alone[:place], rtol=1e-5, atol=1e-5)
            found = packed[row, place : place + len(asked)]
            torch.testing.assert_close(found, alone[len(context) :], rtol=1e-5, atol=1e-5)
            place += len(asked)


def test_packed_positions_and_visibility(loaded: Any, docs: list[Document]) -> None:
    prompts = DecoderPrompts(loaded)
    ids, positions, mask, _, _ = tiny._batch(prompts, docs)
    assert mask.shape == (2, 1, ids.shape[1], ids.shape[1])
    for row, doc in enumerate(docs):
        first = prompts.text(doc.examples[0])
        start = len(first.before) + len(first.slot)
        blocks = [0] * start
        expected = list(range(start))
        for number, example in enumerate(doc.examples, start=1):
            tokens = prompts.text(example)
            size = len(tokens.after) + len(tokens.answer)
            blocks += [number] * size
            expected += range(start, start + size)
        size = len(blocks)
        assert positions[row, :size].tolist() == expected
        visible = (mask[row, 0, :size, :size] == 0).tolist()
        for query in range(size):
            seen = [key for key in range(size) if visible[query][key]]
            own = [k for k in range(query + 1) if blocks[k] in (0, blocks[query])]
            assert seen == own
        assert not (mask[row, 0, :size, size:] == 0).any(), "padding is seen by nobody"
        assert (ids[row, size:] == prompts.pad).all()


def test_labels_are_the_next_token_of_the_same_question(loaded: Any, docs: list[Document]) -> None:
    prompts = DecoderPrompts(loaded)
    _, _, _, labels, is_answer = tiny._batch(prompts, docs)
    for row, doc in enumerate(docs):
        first = prompts.text(doc.examples[0])
        context = [*first.before, *first.slot]
        expected, answers = [*context[1:], -100], [False] * len(context)
        for example in doc.examples:
            tokens = prompts.text(example)
            segment = [*tokens.after, *tokens.answer]
            expected += [*segment[1:], -100]
            # The last token before the answer predicts its first; EOS is predicted too.
            answers += [False] * (len(tokens.after) - 1) + [True] * len(tokens.answer) + [False]
        size = len(expected)
        assert labels[row, :size].tolist() == expected
        assert (labels[row, size:] == -100).all()
        assert is_answer[row, :size].tolist() == answers
        assert not is_answer[row, size:].any()


# --- pretraining


def test_building_twice_gives_the_same_weights(family: str) -> None:
    states = []
    for _ in range(2):
        torch.rand(7)  # Whatever was drawn before must not matter.
        model, _ = tiny.pretrain(narrow(SPECS[family]), seed=1, steps=3, batch_documents=2)
        states.append(model.state_dict())
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def is_hard(doc: Document) -> bool:
    kinds = {example.kind for example in doc.examples}
    hard = bool(kinds & {"direct", "paraphrased", "two_hop"})
    assert hard != bool(kinds & {"plain", "shared"}), "of one kind of profiles"
    return hard


@pytest.mark.parametrize(("share", "num_hard"), [(0.0, 0), (0.25, 2), (0.6, 5), (1.0, 8)])
def test_a_step_has_the_share_of_hard_documents_asked_for(share: float, num_hard: int) -> None:
    shape = profiles_hard.Shape(facts=(6, 8), people=(2, 2))
    phase = tiny.Phase(
        steps=10, learning_rate=1e-3, documents=8, hard_share=share, hard_shape=shape
    )
    for progress in (0.0, 0.5):
        docs = tiny._documents(phase, progress, rng=random.Random(0), seed=0)
        assert sum(map(is_hard, docs)) == num_hard
        assert len(docs) == 8
        assert all(6 <= len(doc.facts) <= 8 for doc in docs if is_hard(doc))
        plain = [len(doc.facts) for doc in docs if not is_hard(doc)]
        short = progress == 0 and share == 0
        assert all(size <= 4 if short else size >= 4 for size in plain), "short ones come first"


def cosine(progress: float) -> float:
    """From 1 at the end of the warm-up's 3% to 0 at the end of the phase."""
    return 0.5 + 0.5 * math.cos(math.pi * (progress - 0.03) / 0.97)


def test_phases_train_one_model_and_each_restarts_the_learning_rate(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = (
        tiny.Phase(steps=3, learning_rate=2e-3),
        tiny.Phase(steps=2, learning_rate=1e-3, hard_share=0.5),
    )
    states, ran = [], []
    train_phase = tiny.train_phase

    def watched(model: Any, prompts: DecoderPrompts, phase: tiny.Phase, **options: Any) -> None:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        train_phase(model, prompts, phase, **options)
        after = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        states.append((before, after))
        ran.append(phase)

    def note(optimizer: Any, *_: object) -> None:
        rates.setdefault(id(optimizer), []).append(optimizer.param_groups[0]["lr"])
        kept.append(optimizer)  # No two may have the same id.

    rates: dict[int, list[float]] = {}
    kept: list[Any] = []
    monkeypatch.setattr(tiny, "train_phase", watched)
    hook = register_optimizer_step_pre_hook(note)
    spec = dataclasses.replace(narrow(SPECS[family]), phases=phases)
    model, _ = tiny.pretrain(spec, seed=0, batch_documents=2)
    hook.remove()

    assert ran == [dataclasses.replace(phase, documents=2) for phase in phases]
    first, second = rates.values()
    assert first[0] == second[0] == 0, "each warms up anew"
    assert first[1] > first[2] > 0
    assert first[1] == pytest.approx(2e-3 * cosine(1 / 3)), "each has its own peak and length"
    assert second[1] == pytest.approx(1e-3 * cosine(1 / 2))
    (start, middle), (again, end) = states
    for name, tensor in model.state_dict().items():
        assert torch.equal(again[name], middle[name]), "the second goes on where the first ended"
        assert torch.equal(tensor, end[name])
    weight = "model.embed_tokens.weight"
    assert not torch.equal(start[weight], middle[weight])
    assert not torch.equal(again[weight], end[weight])


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([0.2, 0.05, 0.2], 2), ([0.05, 0.2], 1), ([0.2] * 9, 4), ([0.2, 0.06], 2)],
)
def test_a_phase_is_trained_again_until_it_has_taught(
    losses: list[float], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tiny.Phase] = []

    def train_phase(model: Any, prompts: DecoderPrompts, phase: tiny.Phase, **_: Any) -> float:
        ran.append(phase)
        return losses[len(ran) - 1] if phase.until else 1.0

    monkeypatch.setattr(tiny, "train_phase", train_phase)
    first = tiny.Phase(steps=3, learning_rate=2e-3, until=0.06)
    then = tiny.Phase(steps=3, learning_rate=1e-3)
    tiny.pretrain(dataclasses.replace(narrow(SPECS["qwen"]), phases=(first, then)), seed=0)
    assert ran == [first] * expected + [then], "the next one comes in any case"


def test_a_phase_says_what_it_has_come_to() -> None:
    """The mean over its last steps, of answers alone."""
    spec = narrow(SPECS["qwen"])
    tokenizer = tiny.build_tokenizer(spec, seed=0)
    torch.manual_seed(0)
    model = tiny.build_model(spec, tokenizer)
    # Nothing is learnt at no rate, and fresh weights say every token equally.
    phase = tiny.Phase(steps=2, learning_rate=0.0, documents=2)
    loss = tiny.train_phase(
        model, DecoderPrompts(tokenizer), phase, rng=random.Random(0), seed=0, name="one"
    )
    assert loss == pytest.approx(math.log(len(tokenizer)), rel=0.05)


def test_steps_replace_the_number_of_every_phase(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tiny.Phase] = []
    monkeypatch.setattr(tiny, "train_phase", lambda model, prompts, phase, **_: ran.append(phase))
    tiny.pretrain(narrow(SPECS[family]), seed=0, steps=7)
    assert [phase.steps for phase in ran] == [7] * len(SPECS[family].phases)
    assert [phase.hard_share for phase in ran] == [
        phase.hard_share for phase in SPECS[family].phases
    ]


def weights(family: str, *, device: str = "cpu", steps: int = 20) -> torch.Tensor:
    """All weights after a short pretraining, as one vector on the CPU."""
    spec = narrow(SPECS[family])
    if steps == 0:
        spec = dataclasses.replace(spec, phases=())
    model, _ = tiny.pretrain(
        spec, seed=0, steps=steps, batch_documents=4, device=torch.device(device)
    )
    assert model.device.type == device and model.dtype == torch.float32
    return torch.cat([weight.detach().cpu().flatten() for weight in model.parameters()])


@pytest.mark.slow
def test_bf16_products_learn_what_fp32_learns(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: padding and the other questions stay hidden under the mask in bf16."""
    start, exact = weights(family, steps=0), weights(family)
    monkeypatch.setattr(
        tiny, "_mixed_precision", lambda device: torch.autocast("cpu", dtype=torch.bfloat16)
    )
    coarse = weights(family)
    assert 0 < (coarse - exact).norm() < 0.1 * (exact - start).norm()


def test_the_cpu_trains_in_fp32() -> None:
    with tiny._mixed_precision(torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.gpu
def test_a_gpu_learns_what_the_cpu_learns(family: str) -> None:
    start, exact = weights(family, steps=0), weights(family)
    assert (weights(family, device="cuda") - exact).norm() < 0.1 * (exact - start).norm()


def test_reading_is_scored_by_kind_of_question(pair: Path, family: str, loaded: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(pair / family).eval()
    plain = tiny.reading_accuracy(model, loaded, seed=0, num_documents=3)
    hard = tiny.reading_accuracy(model, loaded, seed=0, num_documents=3, hard=True)
    assert set(plain) <= {"em", "em_plain", "em_shared"} and "em" in plain
    assert set(hard) == {"em", "em_direct", "em_paraphrased", "em_two_hop"}
