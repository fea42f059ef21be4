"""Loading a tokenizer as its folder describes it."""

import threading
from collections.abc import Callable, Hashable, Sequence, Sized
from typing import Any, Generic, TypeVar

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from latentwire.config import DecoderConfig, EncoderConfig

K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Sized)

_KEPT = 4_000_000
"""Tokens that are remembered, of all texts together; some 150 MB."""
_ONE_AT_A_TIME = threading.Lock()
"""Held by whoever tokenizes: a fast tokenizer keeps in itself whether special tokens are to be
split, and a call that sets it changes the meaning of one that runs in another thread."""
_GENERIC = {"PreTrainedTokenizerFast", "TokenizersBackend"}


def load_tokenizer(settings: EncoderConfig | DecoderConfig) -> Any:
    """The tokenizer of a model's folder or hub id.

    Where the folder declares the generic class, its ``tokenizer.json`` is the whole truth. For
    some model types ``AutoTokenizer`` puts the family's own class in its place, with another
    normalizer, and text would not come back as it was.
    """
    common = {
        "revision": settings.revision,
        "trust_remote_code": settings.trust_remote_code,
    }
    declared = get_tokenizer_config(settings.model, **common).get("tokenizer_class")
    kind = PreTrainedTokenizerFast if declared in _GENERIC else AutoTokenizer
    return kind.from_pretrained(settings.model, **common)


def stop_tokens(settings: DecoderConfig) -> tuple[int, ...]:
    """Tokens after which a model's own generation ends, as its ``generation_config.json`` says."""
    try:
        found = GenerationConfig.from_pretrained(settings.model, revision=settings.revision)
    except OSError:  # it has none
        return ()
    ends = found.eos_token_id
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)


def special_strings(tokenizer: Any) -> tuple[str, ...]:
    """How the tokenizer's special tokens are written."""
    added = tokenizer.added_tokens_decoder.values()
    return tuple(token.content for token in added if token.special)


def frame_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Tokens of text of ours, in which a special token may be written; none is added."""
    return tuple(_encode(tokenizer, text)["input_ids"]) if text else ()


def literal_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Tokens of a user's text, none added: a special token written in it is so many letters.

    As one token it would end an answer or open a chat turn.
    """
    return tuple(_encode(tokenizer, text, split_special_tokens=True)["input_ids"]) if text else ()


def literal_ends(tokenizer: Any, text: str) -> list[int]:
    """For each of ``literal_ids``, the character after its last one."""
    if not text:
        return []
    options = {"split_special_tokens": True, "return_offsets_mapping": True}
    return [end for _, end in _encode(tokenizer, text, **options)["offset_mapping"]]


def literal_batch(tokenizer: Any, texts: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
    """``literal_ids`` and ``literal_ends`` of many texts, tokenized by all cores."""
    if not texts:
        return [], []
    options = {"split_special_tokens": True, "return_offsets_mapping": True}
    found = _encode(tokenizer, list(texts), **options)
    ends = [[end for _, end in offsets] for offsets in found["offset_mapping"]]
    return [list(ids) for ids in found["input_ids"]], ends


def decoded(tokenizer: Any, ids: Sequence[int], **options: bool) -> str:
    """Tokens as text."""
    with _ONE_AT_A_TIME:
        text: str = tokenizer.decode(ids, **options)
    return text


def _encode(tokenizer: Any, text: str | list[str], **options: bool) -> Any:
    # Not verbose: what is longer than a window is cut and counted by those who know the window.
    with _ONE_AT_A_TIME:
        return tokenizer(text, add_special_tokens=False, verbose=False, **options)


class Remembered(Generic[K, V]):
    """Calls ``make``, and keeps what it said last, up to so many tokens; threads may share it.

    Args:
        limit: sum of the lengths of what is kept.
    """

    def __init__(self, make: Callable[[K], V], *, limit: int = _KEPT) -> None:
        self._make = make
        self._limit = limit
        self._known: dict[K, V] = {}
        self._size = 0
        self._lock = threading.Lock()

    def __call__(self, key: K) -> V:
        found = self._known.get(key)
        if found is None:
            found = self._make(key)
            with self._lock:
                self._keep(key, found)
        return found

    def __contains__(self, key: K) -> bool:
        return key in self._known

    def _keep(self, key: K, value: V) -> None:
        if key in self._known:
            return  # another thread was faster
        self._known[key] = value
        self._size += len(value)
        while self._size > self._limit:
            oldest = next(iter(self._known))
            self._size -= len(self._known.pop(oldest))
