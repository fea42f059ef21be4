"""Where examples come from: generated profiles, SQuAD or HotpotQA (hub or file), or JSON lines."""

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from latentwire.data import hotpot, profiles, profiles_hard, readers, rows
from latentwire.data.articles import Article, SourceError
from latentwire.data.example import Example
from latentwire.data.hotpot import Setting

Split = Literal["train", "validation", "test"]

SOURCES = ("profiles", "squad", "hotpot", "jsonl")
SETTINGS = {"profiles": ("plain", "hard"), "hotpot": ("distractor", "gold")}
"""Sources whose examples can be made in several ways."""
HUB_NAMES = {"squad": "rajpurkar/squad", "hotpot": hotpot.HUB_NAME}
"""Sources that the hub has, and the data set each reads without ``data.path``."""

_HELD_OUT = 0.1
"""Share of the articles of a local file that each of validation and test gets."""
_HELD_OUT_SPLITS = ("validation", "test")
_MIN_HUB_ARTICLES = 2
_MIN_DOCUMENTS = 2
"""Of what is held out of a file that has enough: controls compare two."""
_HUB_VALIDATION = 0.02
"""Share of the articles of a hub data set's train split that are held out for validation; its own
validation split is what results are compared on, and there is no public test split."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_BY_TITLE = "rows of one `title`, or of one context where there is no title"
_ARTICLES = {
    "squad": _BY_TITLE,
    "hotpot": "rows of one `_id`, or of one context",
    "jsonl": _BY_TITLE,
}
_FORMATS = {
    "squad": ".json (SQuAD v1.1 or v2), .jsonl and .parquet",
    "hotpot": ".json (the official list of objects), .jsonl and .parquet",
}
_FILE_SUFFIXES = {".json", ".jsonl", ".parquet", ".txt", ".csv", ".tsv", ".gz", ".zip", ".arrow"}


class DataSource(Protocol):
    """One split of a data set."""

    @property
    def num_documents(self) -> int:
        """How many documents the split has; they are numbered from 0."""
        ...

    def examples(self, document: int) -> tuple[Example, ...]:
        """The examples of one document; all have the same context."""
        ...

    def counts(self) -> list[int]:
        """The number of examples of each document, without making them."""
        ...


@dataclass(frozen=True, kw_only=True)
class ProfilesSource:
    """Generated profiles; a document is made when it is asked for."""

    split: Split
    seed: int
    hard: bool = False

    @property
    def num_documents(self) -> int:
        return profiles.DOCUMENTS_PER_SPLIT[self.split]

    def examples(self, document: int) -> tuple[Example, ...]:
        assert 0 <= document < self.num_documents, document
        return _profile(self.seed, self.split, document, self.hard)

    def counts(self) -> list[int]:
        return [profiles.QUESTIONS_PER_DOCUMENT] * self.num_documents


@dataclass(frozen=True, kw_only=True)
class LoadedSource:
    """Documents held in memory, in the file's order."""

    documents: tuple[tuple[Example, ...], ...]

    @property
    def num_documents(self) -> int:
        return len(self.documents)

    def examples(self, document: int) -> tuple[Example, ...]:
        assert 0 <= document < self.num_documents, document
        return self.documents[document]

    def counts(self) -> list[int]:
        return [len(examples) for examples in self.documents]


def open_source(
    *,
    source: str,
    path: str | None,
    setting: str | None,
    split: Split,
    seed: int,
    validation_path: str | None = None,
    test_path: str | None = None,
) -> DataSource:
    """Opens one split of a data set.

    Args:
        source: one of ``SOURCES``.
        path: a local file; for ``squad`` and ``hotpot`` also the name of a hub data set,
            ``org/name``.
        setting: one of the source's ``SETTINGS``; None is the first of them.
        split: which split.
        seed: of the generated profiles, and of what is held out of a file or a train split.
        validation_path: a local file that is the validation split.
        test_path: one that is the test split.

    Raises:
        SourceError: a ValueError; its text is for the user, one line for each problem.
    """
    assert split in get_args(Split), split
    if source not in SOURCES:
        raise SourceError([f"data.source: unknown source `{source}`; known: {', '.join(SOURCES)}"])
    settings = SETTINGS.get(source, ())
    if setting is not None and setting not in settings:
        has = f"has {', '.join(settings)}" if settings else "has none; leave the key out"
        raise SourceError([f"data.setting: `{setting}`: `data.source: {source}` {has}"])
    files = {"validation": validation_path, "test": test_path}
    if source == "profiles":
        given = {"data.path": path, **{f"data.{name}_path": file for name, file in files.items()}}
        if any(file is not None for file in given.values()):
            raise SourceError(
                [
                    f"{key}: `{file}` is given, but `data.source: profiles` is generated: "
                    f"remove {key}, or set data.source to squad, hotpot or jsonl"
                    for key, file in given.items()
                    if file is not None
                ]
            )
        return ProfilesSource(split=split, seed=seed, hard=setting == "hard")
    of_hotpot: Setting = "gold" if setting == "gold" else "distractor"
    if source == "jsonl" and path is None:
        raise SourceError(["data.path: `data.source: jsonl` needs a file: set data.path"])
    if path is not None and not path.strip():
        raise SourceError(["data.path: the path is empty; give a file or leave the key out"])
    hub_name = _hub_name(path, HUB_NAMES[source]) if source in HUB_NAMES else None
    parted = tuple(name for name in _HELD_OUT_SPLITS if files[name] is None)
    if split != "train" and split not in parted:
        articles: Sequence[Article] = _whole_file(source, files[split], of_hotpot, split)
    elif hub_name is not None:
        articles = _hub_articles(
            source, hub_name, of_hotpot, split=split, seed=seed, parts="validation" in parted
        )
    else:
        assert path is not None, "every other source has a default"
        every = _read_file(source, path, of_hotpot)
        articles = _split_articles(
            every, split=split, seed=seed, path=path, source=source, parted=parted
        )
    documents = tuple(document for article in articles for document in article.documents)
    return LoadedSource(documents=documents)


def check_source(
    *,
    source: str,
    path: str | None,
    setting: str | None,
    seed: int,
    validation_path: str | None = None,
    test_path: str | None = None,
) -> list[str]:
    """Everything wrong with the data keys of a configuration, as messages; empty when all is well.

    It opens every split, so a local file is read in full, and a hub data set is downloaded.
    """

    try:
        for split in get_args(Split):
            open_source(
                source=source,
                path=path,
                setting=setting,
                split=split,
                seed=seed,
                validation_path=validation_path,
                test_path=test_path,
            )
    except SourceError as error:
        return error.problems
    return []


def contexts_of(source: DataSource) -> set[str]:
    """Every context of a split that is held in memory; generated splits share none."""
    if not isinstance(source, LoadedSource):
        return set()
    return {examples[0].context for examples in source.documents}


@functools.lru_cache(maxsize=256)
def _profile(seed: int, split: Split, index: int, hard: bool) -> tuple[Example, ...]:
    make = profiles_hard.document if hard else profiles.document
    return make(seed, split, index).examples


def _hub_name(path: str | None, default: str) -> str | None:
    """The hub data set that ``path`` names; None when it is a local file."""
    if path is None:
        return default
    # A file that does not exist yet looks like one by its suffix, and gets that message.
    is_name = _HUB_NAME.fullmatch(path) and Path(path).suffix.lower() not in _FILE_SUFFIXES
    return path if is_name and not Path(path).exists() else None


def _hub_articles(
    source: str, name: str, setting: Setting, *, split: Split, seed: int, parts: bool
) -> list[Article]:
    """The articles of one split: a part of the hub's train split is validation, unless that is a
    file of the user's (not ``parts``), and the hub's validation split is test."""
    if split == "test":
        return list(_read_hub(source, name, "validation", setting))
    articles = _read_hub(source, name, "train", setting)
    if not parts:
        return list(articles)
    if len(articles) < _MIN_HUB_ARTICLES:
        raise SourceError(
            [
                f"data.path: the train split of {name} has {len(articles)} article(s) "
                f"({_ARTICLES[source]}), and train and validation need at least one each: give "
                "another data set"
            ]
        )
    num_held_out = max(1, round(_HUB_VALIDATION * len(articles)))
    held_out = set(_drawn(articles, seed=seed)[:num_held_out])
    return [each for each in articles if (each.key in held_out) == (split == "validation")]


@functools.lru_cache(maxsize=2)
def _read_hub(source: str, name: str, split: str, setting: Setting) -> tuple[Article, ...]:
    if source == "hotpot":
        table = rows.read_hub(name, split, variant=hotpot.HUB_VARIANT)
        return hotpot.hotpot_table(table, setting=setting)
    return readers.squad_table(rows.read_hub(name, split))


def _read_file(source: str, path: str, setting: Setting) -> tuple[Article, ...]:
    try:
        file = Path(path).expanduser()
        stamp = file.stat()
    except (OSError, RuntimeError, ValueError):
        # Not to be found or not allowed: the reader says which.
        return _read_version(source, path, setting, 0, 0)
    return _read_version(source, str(file), setting, stamp.st_mtime_ns, stamp.st_size)


@functools.lru_cache(maxsize=3)
def _read_version(
    source: str, path: str, setting: Setting, mtime_ns: int, size: int
) -> tuple[Article, ...]:
    """One version of a file; checking it and opening its three splits reads it once."""
    file = Path(path)
    if source == "jsonl":
        return readers.read_jsonl(file, squad=False)
    if file.suffix.lower() not in (".json", ".jsonl", ".parquet") and file.is_file():
        raise SourceError(
            [
                f"data.path: {path}: `data.source: {source}` reads {_FORMATS[source]} files; "
                "rename or convert it"
            ]
        )
    if source == "hotpot":
        return hotpot.read_hotpot(file, setting=setting)
    return readers.read_squad(file)


def _whole_file(
    source: str, path: str | None, setting: Setting, split: Split
) -> tuple[Article, ...]:
    """A file that is one split as it stands."""
    assert path is not None, split
    key = f"data.{split}_path"
    if not path.strip():
        raise SourceError([f"{key}: the path is empty; give a file or leave the key out"])
    try:
        return _read_file(source, path, setting)
    except SourceError as error:
        # Readers know one key.
        raise SourceError(
            [problem.replace("data.path:", f"{key}:", 1) for problem in error.problems]
        ) from None


def _split_articles(
    articles: tuple[Article, ...],
    *,
    split: Split,
    seed: int,
    path: str,
    source: str,
    parted: Sequence[str],
) -> list[Article]:
    """The articles of one split: 10 % each for the ``parted`` ones of validation and test, the rest
    for train, none of them empty."""
    if not parted:
        return list(articles)
    needed = 1 + len(parted)
    if len(articles) < needed:
        raise SourceError(
            [
                f"data.path: {path} has {len(articles)} article(s) ({_ARTICLES[source]}), and "
                f"{' and '.join([', '.join(['train', *parted[:-1]]), parted[-1]])} need at least "
                f"one each: give {needed} or more"
            ]
        )
    keys = _drawn(articles, seed=seed)
    size = {article.key: len(article.documents) for article in articles}
    num_held_out = max(1, round(_HELD_OUT * len(articles)))

    def is_single(part: Sequence[str]) -> bool:
        return sum(size[key] for key in part) < _MIN_DOCUMENTS

    def chosen_of(number: int) -> dict[str, list[str]]:
        parts = {
            name: keys[i * number : (i + 1) * number] for i, name in enumerate(_HELD_OUT_SPLITS)
        }
        # Each has its place, whether the other is a file or not.
        unused = [key for name, part in parts.items() if name not in parted for key in part]
        return {**parts, "train": unused + keys[len(parts) * number :]}

    while len(keys) >= needed * (num_held_out + 1) and any(
        is_single(chosen_of(num_held_out)[name]) for name in parted
    ):
        num_held_out += 1
    chosen = chosen_of(num_held_out)
    wanted = set(chosen[split])
    return [article for article in articles if article.key in wanted]


def _drawn(articles: Sequence[Article], *, seed: int) -> list[str]:
    """Keys of articles in a drawn order: an article's place depends on its key, the seed and the
    other keys, not on the order it came in."""
    return sorted(
        (article.key for article in articles),
        key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest(),
    )
