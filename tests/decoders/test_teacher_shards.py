"""The teacher cache's files: what they hold comes back, and what is damaged or foreign is named."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from latentwire.config import DecoderConfig
from latentwire.data.example import Example
from latentwire.data.prompts import DecoderPrompts, PromptTokens
from latentwire.decoders import fingerprint, teacher_shards
from latentwire.decoders.loading import load_decoder
from latentwire.decoders.teacher import Form, prompt_id
from latentwire.decoders.teacher_cache import TeacherCache
from latentwire.decoders.teacher_shards import (
    Layout,
    ShardError,
    make_layout,
    open_shard,
    set_aside,
    shard_names,
    write_shard,
)
from latentwire.testing import run_distributed

CPU = torch.device("cpu")
VOCABULARY = 40
DECODER: dict[str, Any] = {"weights": "w", "settings": {"eps": 1e-5}, "prefix": None, "device": "c"}
FORMS = {
    "short": Form(top_k=4, bits=16, temperature=2.0),
    "whole": Form(top_k=0, bits=32, temperature=1.0),
}


def layout_of(form: Form) -> Layout:
    return make_layout(form, vocabulary=VOCABULARY, decoder=DECODER)[0]


def name_of(number: int) -> bytes:
    return number.to_bytes(16, "little")


def write(folder: Path, layout: Layout, numbers: list[int]) -> str:
    """A shard of prompts of which number n has n % 3 + 1 answer tokens."""
    lengths = [number % 3 + 1 for number in numbers]
    logits = torch.cat([logits_of(number) for number in numbers])
    return write_shard(
        folder, layout, [name_of(n) for n in numbers], lengths, layout.form.of(logits)
    )


def logits_of(number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(number % 3 + 1, VOCABULARY, generator=generator)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_was_written_is_found_by_example(tmp_path: Path, form: Form) -> None:
    layout = layout_of(form)
    cache = TeacherCache(tmp_path, layout, device=CPU)
    for numbers in ([5, 0, 7], [7, 2]):
        cache.add(open_shard(tmp_path / write(tmp_path, layout, numbers), layout))
    assert len(cache) == 4 and name_of(2) in cache and name_of(3) not in cache
    examples = {n: Example(context="c", question=str(n), answers=("a",)) for n in range(8)}
    cache.remember((example, name_of(n)) for n, example in examples.items())
    for wanted in ([2, 7, 5], [0], [7, 7, 2, 0, 5]):
        found = cache.find([examples[n] for n in wanted])
        kept = form.of(torch.cat([logits_of(n) for n in wanted]))
        assert found is not None
        torch.testing.assert_close(found.log_probs, kept.log_probs, atol=0, rtol=0)
        assert found.log_probs.dtype == form.dtype
        if form.top_k:
            assert torch.equal(found.ids, kept.ids) and torch.equal(found.log_tail, kept.log_tail)
        else:
            assert found.ids is None and found.log_tail is None
    assert cache.find([examples[2], examples[3]]) is None, "one of them is not known"
    assert cache.num_bytes == sum(path.stat().st_size for path in tmp_path.glob("shard-*"))


def test_a_key_names_all_that_a_distribution_depends_on() -> None:
    def key(vocabulary: int = VOCABULARY, form: Form = FORMS["short"], **decoder: Any) -> str:
        return make_layout(form, vocabulary=vocabulary, decoder=DECODER | decoder)[0].key

    keys = [
        key(),
        key(vocabulary=41),
        key(form=Form(top_k=5, bits=16, temperature=2.0)),
        key(form=Form(top_k=4, bits=32, temperature=2.0)),
        key(form=Form(top_k=4, bits=16, temperature=1.0)),
        key(weights="x"),
        key(settings={"eps": 1e-6}),
        key(prefix="p"),
        key(device="d"),
    ]
    assert len(set(keys)) == len(keys)
    whole = [key(form=Form(top_k=k, bits=16, temperature=1.0)) for k in (0, VOCABULARY, 999)]
    assert len(set(whole)) == 1, "all of the vocabulary is one form, however it is asked for"
    assert key() == key(form=Form(top_k=4, bits=16, temperature=2))


def test_a_prompt_is_named_by_every_token_and_its_place() -> None:
    tokens = PromptTokens(before=(1, 2), slot=(3,), after=(4,), answer=(5, 6))
    others = [
        PromptTokens(before=(1,), slot=(2, 3), after=(4,), answer=(5, 6)),
        PromptTokens(before=(1, 2), slot=(3, 4), after=(), answer=(5, 6)),
        PromptTokens(before=(1, 2), slot=(3,), after=(4, 5), answer=(6,)),
        PromptTokens(before=(1, 2), slot=(3,), after=(4,), answer=(5, 7)),
        PromptTokens(before=(1, 2), slot=(9,), after=(4,), answer=(5, 6)),
    ]
    assert len({prompt_id(each) for each in (tokens, *others)}) == 6
    again = PromptTokens(before=(1, 2), slot=(3,), after=(4,), answer=(5, 6), slot_tokens_cut=9)
    assert prompt_id(again) == prompt_id(tokens)


def test_settings_of_prompts_name_other_prompts(pair: Path) -> None:
    config = DecoderConfig(model=str(pair / "llama"))
    decoder = load_decoder("llama", config, dtype=torch.float32, device=CPU)
    example = Example(context="Mira lives in Orsa.", question="Where?", answers=("Orsa by day",))
    variants: list[dict[str, Any]] = [
        {},
        {"template": "Text: {context}\nQuestion: {question}"},
        {"anchor": "\nReply:"},
        {"bos": "never"},
        {"max_answer_tokens": 2},
        {"window": 42},
    ]
    found = {prompt_id(DecoderPrompts(decoder.tokenizer, **v).text(example)) for v in variants}
    assert len(found) == len(variants)
    settings = fingerprint.settings_of(decoder.model)
    assert settings["rms_norm_eps"] and not [key for key in settings if key.startswith("_")]
    assert decoder.num_logits == decoder.model(torch.tensor([[1]])).logits.shape[-1]


# --- damaged and foreign files


def rewritten(path: Path, **changed: Any) -> None:
    """The same file with other tensors or metadata, as another program might leave it."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        said = dict(file.metadata())
    said |= changed.pop("said", {})
    save_file(tensors | changed, path, metadata=said)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Any] = {
    "cut off": lambda p: p.write_bytes(p.read_bytes()[:-9]),
    "no safetensors file": lambda p: p.write_bytes(b"text" * 100),
    "cut off, or no": lambda p: p.write_bytes(b""),
    "bytes have changed": flip,
    "'log_probs' is": lambda p: rewritten(p, log_probs=torch.zeros(6, 4)),
    "'ids' is": lambda p: rewritten(p, ids=torch.zeros(5, 4, dtype=torch.int32)),
    "in place of what it should": lambda p: rewritten(p, more=torch.zeros(1)),
    "no shard of a teacher cache": lambda p: save_file({"prompts": torch.zeros(1)}, p),
    "of another decoder": lambda p: rewritten(p, said={"key": "other"}),
    "it has format 9": lambda p: rewritten(p, said={"format": "9"}),
    "index does not fit": lambda p: rewritten(p, first=torch.tensor([0, 9, 7, 7])),
    "no plain file": lambda p: (p.rename(p.with_suffix(".x")), p.symlink_to(p.with_suffix(".x"))),
}


@pytest.mark.parametrize("why", DAMAGES)
def test_what_is_no_shard_says_why(tmp_path: Path, why: str) -> None:
    layout = layout_of(FORMS["short"])
    path = tmp_path / write(tmp_path, layout, [4, 5, 6])
    assert open_shard(path, layout).first == (0, 2, 5, 6)
    DAMAGES[why](path)
    with pytest.raises(ShardError, match=why):
        open_shard(path, layout)
    aside = set_aside(path)
    assert aside.name.endswith(".damaged") and shard_names(tmp_path) == []
    set_aside(path)  # another process was faster: no error


def test_a_token_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    layout = layout_of(FORMS["short"])
    kept = layout.form.of(logits_of(2))
    assert kept.ids is not None
    kept.ids[0, 0] = VOCABULARY
    name = write_shard(tmp_path, layout, [name_of(2)], [3], kept)
    with pytest.raises(ShardError, match="vocabulary"):
        open_shard(tmp_path / name, layout)


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    layout = layout_of(FORMS["short"])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, layout, [1])
    assert list(tmp_path.iterdir()) == []


def test_only_abandoned_leftovers_are_removed(tmp_path: Path) -> None:
    old, fresh = tmp_path / "shard-a.1-b.tmp", tmp_path / "shard-c.1-d.tmp"
    for path in (old, fresh):
        path.write_bytes(b"x")
    os.utime(old, (0, time.time() - 2 * teacher_shards._ABANDONED_SECONDS))
    teacher_shards.prepare(tmp_path, {"of": "a decoder"})
    teacher_shards.prepare(tmp_path, {"of": "a decoder"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [fresh.name, "teacher.json"]


def builder(rank: int, world_size: int, folder: str) -> int:
    """Writes shards, half of them the other process's too, and reads all that it sees meanwhile."""
    layout, root, seen = layout_of(FORMS["short"]), Path(folder), 0
    for number in range(10):
        teacher_shards.prepare(root, {"of": "both"})
        write(root, layout, [number, number + 1] if number % 2 else [100 * rank + number])
        for name in shard_names(root):
            open_shard(root / name, layout)
            seen += 1
    return seen


def test_two_processes_that_build_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    seen = run_distributed(builder, 2, str(tmp_path))
    assert min(seen) >= 10 * 11 // 2
    layout = layout_of(FORMS["short"])
    cache = TeacherCache(tmp_path, layout, device=CPU)
    for name in shard_names(tmp_path):
        cache.add(open_shard(tmp_path / name, layout))
    numbers = {*range(1, 11), *range(0, 10, 2), *range(100, 110, 2)}
    assert all(name_of(number) in cache for number in numbers) and len(cache) == len(numbers)
    assert len(shard_names(tmp_path)) == 5 + 2 * 5, "equal shards are one file"
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []
