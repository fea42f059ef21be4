"""Tokens of many texts, made once and kept in a memory-mapped file that later runs read.

The file is an Arrow table written by ``datasets``; it is named after the tokenizer and the texts,
so that nothing else is ever found in it. Whoever comes first makes it, and others on the machine,
or on the file system, wait for that one.
"""

import hashlib
import importlib.util
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from latentwire.data.tokenizers import literal_batch

log = logging.getLogger(__name__)

FILE = "tokens.arrow"
_LOCK = "lock"
_BATCH = 256
"""Texts that are tokenized at once, by all cores."""
_LOOKED_AT = 8
"""Texts of a file that are tokenized again when it is opened, to be compared."""


def problems() -> list[str]:
    """What keeps this machine from keeping tokens, for the user."""
    if importlib.util.find_spec("datasets") is not None:
        return []
    return [
        "data.token_cache: true, but the tokens are kept by datasets, which is not here: "
        "pip install -e '.[data]', or use false"
    ]


class TokenCache:
    """The tokens of texts, by text.

    Args:
        table: a ``datasets.Dataset`` of columns ``ids`` and ``ends``.
        number: the row of each text, by ``digest``.
    """

    def __init__(self, table: Any, number: Mapping[bytes, int]) -> None:
        self._table = table
        self._number = number

    def __len__(self) -> int:
        return len(self._number)

    def ids(self, text: str) -> list[int] | None:
        """A text's tokens; None if it is not known."""
        return self._row(text, "ids")

    def ends(self, text: str) -> list[int] | None:
        """For each of them the character after its last; None if the text is not known."""
        return self._row(text, "ends")

    def _row(self, text: str, column: str) -> list[int] | None:
        number = self._number.get(digest(text))
        if number is None:
            return None
        found: list[int] = self._table[number][column]
        return found


def digest(text: str) -> bytes:
    """What a text is known by: 16 bytes."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def open_cache(root: Path, texts: Iterable[str], tokenizer: Any) -> TokenCache:
    """The tokens of ``texts``, made where ``root`` does not hold them yet.

    Args:
        root: the folder of all such caches; it is made.
        tokenizer: a fast one of ``transformers``.

    Raises:
        OSError: the folder cannot be read or written.
    """
    from filelock import FileLock

    wanted = sorted({digest(text): text for text in texts}.items())
    keys = [key for key, _ in wanted]
    folder = root / _name(keys, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE
    with FileLock(folder / _LOCK):
        table = _whole(file, wanted, tokenizer)
        if table is None:
            _make(file, wanted, tokenizer)
            table = _whole(file, wanted, tokenizer)
    if table is None:
        raise OSError(f"{file} is not as it was written")
    return TokenCache(table, {key: row for row, key in enumerate(keys)})


def _name(keys: Sequence[bytes], tokenizer: Any) -> str:
    """Changes whenever a token could."""
    found = hashlib.blake2b(digest_size=16)
    # The whole of a fast tokenizer: vocabulary, merges, normalizer, and all that is added.
    found.update(tokenizer.backend_tokenizer.to_str().encode())
    found.update(f"{version('tokenizers')} {version('transformers')}".encode())
    for key in keys:
        found.update(key)
    return found.hexdigest()


def _whole(file: Path, wanted: Sequence[tuple[bytes, str]], tokenizer: Any) -> Any:
    """The table in ``file`` if there is one of these texts; None otherwise.

    It appears whole or not at all, and rows here and there are compared with what they should be.
    """
    from datasets import Dataset

    if not file.exists():
        return None
    try:
        table = Dataset.from_file(str(file))
        if table["key"][:] != [key for key, _ in wanted]:
            raise ValueError("it is of other texts")
        rows = range(0, len(wanted), max(1, len(wanted) // _LOOKED_AT))
        again = literal_batch(tokenizer, [wanted[row][1] for row in rows])
        for row, ids, ends in zip(rows, *again, strict=True):
            if table[row]["ids"] != ids or table[row]["ends"] != ends:
                raise ValueError("it holds other tokens")
    except (OSError, ValueError, KeyError, TypeError) as error:
        # What pyarrow raises for a cut or a strange file is one of the first two.
        log.warning("%s: %s; its tokens are made again", file, error)
        return None
    return table


def _make(file: Path, wanted: Sequence[tuple[bytes, str]], tokenizer: Any) -> None:
    from datasets import Dataset, Features, Value
    from datasets import Sequence as ListOf

    _clear(file.parent)  # of who was killed while making it; we hold the lock
    columns = {
        "key": Value("binary"),
        "ids": ListOf(Value("int32")),
        "ends": ListOf(Value("int32")),
    }
    texts = Dataset.from_dict({"key": [key for key, _ in wanted], "text": [t for _, t in wanted]})
    try:
        # It writes another file and moves that to this name when it is whole.
        texts.map(
            _tokenized(tokenizer),
            batched=True,
            batch_size=_BATCH,
            remove_columns=["text"],
            features=Features(columns),
            cache_file_name=str(file),
            load_from_cache_file=False,
            new_fingerprint=file.parent.name,
            desc="tokens",
        )
    except OSError:
        _clear(file.parent)  # a full disk need not stay so because of us
        raise


def _clear(folder: Path) -> None:
    """Removes what is half written."""
    for left in folder.glob("tmp*"):
        left.unlink()


def _tokenized(tokenizer: Any) -> Callable[[dict[str, list[Any]]], dict[str, list[Any]]]:
    def tokenized(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        ids, ends = literal_batch(tokenizer, batch["text"])
        return {"key": batch["key"], "ids": ids, "ends": ends}

    return tokenized
