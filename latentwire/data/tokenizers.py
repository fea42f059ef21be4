"""Loading a tokenizer as its folder describes it."""

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from latentwire.config import DecoderConfig, EncoderConfig

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

CACHED = 100_000
"""Texts whose tokens are remembered."""
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


def remembered(cache: dict[K, V], key: K, make: Callable[[K], V]) -> V:
    """``make(key)``, or what it was before; a cache may be shared by threads."""
    found = cache.get(key)
    if found is None:
        if len(cache) > CACHED:
            cache.clear()
        found = cache[key] = make(key)
    return found
