"""Tokens kept in a file: those that the tokenizer makes, made once, by one process."""

import errno
import logging
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from latentwire.data import token_cache
from latentwire.data.token_cache import FILE, digest, open_cache
from latentwire.data.tokenizers import literal_ends, literal_ids, special_strings

TEXTS = ["", "a word", "  two  words \n", "naïve Zürich 東京 🙂", "x" * 3000, "a word"]


@pytest.fixture
def tokenizer(pair: Path) -> Any:
    return AutoTokenizer.from_pretrained(pair / "llama")


@pytest.fixture
def texts(tokenizer: Any) -> list[str]:
    return [*TEXTS, f"ends here {special_strings(tokenizer)[0]} or not"]


def no_one_makes(*_: Any) -> None:
    raise AssertionError("tokens were made again")


def test_tokens_are_those_of_the_tokenizer(
    tmp_path: Path, tokenizer: Any, texts: list[str]
) -> None:
    cache = open_cache(tmp_path, texts, tokenizer)
    assert len(cache) == len(set(texts))
    for text in texts:
        assert cache.ids(text) == list(literal_ids(tokenizer, text))
        assert cache.ends(text) == literal_ends(tokenizer, text)
    assert cache.ids("never seen") is None and cache.ends("never seen") is None


def test_they_are_made_once(
    tmp_path: Path, tokenizer: Any, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_cache(tmp_path, texts, tokenizer)
    monkeypatch.setattr(token_cache, "_make", no_one_makes)
    assert open_cache(tmp_path, reversed(texts), tokenizer).ids("a word")
    with pytest.raises(AssertionError, match="again"):
        open_cache(tmp_path, [*texts, "one more"], tokenizer)


def test_another_tokenizer_has_its_own_file(tmp_path: Path, pair: Path, tokenizer: Any) -> None:
    other = AutoTokenizer.from_pretrained(pair / "qwen")
    for one in (tokenizer, other):
        cache = open_cache(tmp_path, TEXTS, one)
        assert cache.ids("a word") == list(literal_ids(one, "a word"))
    changed = AutoTokenizer.from_pretrained(pair / "llama")
    changed.add_tokens(["a word"])
    assert open_cache(tmp_path, TEXTS, changed).ids("a word") == [len(changed) - 1]
    assert len(list(tmp_path.glob(f"*/{FILE}"))) == 3


@pytest.mark.parametrize("harm", ["cut", "letters", "other texts", "other tokens"])
def test_a_damaged_file_is_made_again(
    tmp_path: Path, tokenizer: Any, harm: str, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setattr(logging.getLogger("latentwire"), "propagate", True)
    open_cache(tmp_path, TEXTS, tokenizer)
    (file,) = tmp_path.glob(f"*/{FILE}")
    whole = file.read_bytes()
    if harm == "cut":
        file.write_bytes(whole[: len(whole) // 3])
    elif harm == "letters":
        file.write_bytes(b"no arrow at all")
    elif harm == "other texts":
        token_cache._make(file, [(digest("b"), "b")], tokenizer)
    else:
        wanted = sorted({digest(text): f"{text}!" for text in TEXTS}.items())
        token_cache._make(file, wanted, tokenizer)
    cache = open_cache(tmp_path, TEXTS, tokenizer)
    assert "made again" in caplog.text and str(file) in caplog.text
    assert cache.ids("a word") == list(literal_ids(tokenizer, "a word"))
    assert file.read_bytes() == whole


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path, tokenizer: Any) -> None:
    open_cache(tmp_path, TEXTS, tokenizer)
    (file,) = tmp_path.glob(f"*/{FILE}")
    file.unlink()
    (file.parent / "tmpabc").write_bytes(b"half")
    open_cache(tmp_path, TEXTS, tokenizer)
    assert sorted(path.name for path in file.parent.iterdir()) == ["lock", FILE]


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = token_cache.literal_batch

    def full(*args: Any) -> Any:
        if list(tmp_path.glob("*/tmp*")):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "_BATCH", 2)
        patch.setattr(token_cache, "literal_batch", full)
        with pytest.raises(OSError, match="No space left"):
            open_cache(tmp_path, TEXTS, tokenizer)
    assert [path.name for path in tmp_path.glob("*/*")] == ["lock"]
    assert open_cache(tmp_path, TEXTS, tokenizer).ids("a word")


def opened(folder: Path, root: Path, results: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    is_made = []
    real = token_cache._make
    token_cache._make = lambda *args: is_made.append(1) or real(*args)  # type: ignore[func-returns-value]
    cache = open_cache(root, TEXTS, tokenizer)
    results.put((len(is_made), cache.ids("a word") == list(literal_ids(tokenizer, "a word"))))


def test_of_many_processes_one_makes_them(tmp_path: Path, pair: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [
        context.Process(target=opened, args=(pair / "llama", tmp_path, results)) for _ in range(3)
    ]
    for rank in ranks:
        rank.start()
    found = [results.get(timeout=100) for _ in ranks]
    for rank in ranks:
        rank.join()
    assert sorted(made for made, _ in found) == [0, 0, 1]
    assert all(is_right for _, is_right in found)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        open_cache(tmp_path / "file", TEXTS, tokenizer)
