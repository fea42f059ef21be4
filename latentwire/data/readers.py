"""Reads question-answering files into articles, and says everything that is wrong with them.

An article is what may not be divided between splits: an entry of a SQuAD file, or all rows of one
title. An article holds documents, a document the examples that share one context. Identical
contexts are one document wherever they stand, so no context reaches two splits.
"""

import codecs
import importlib.util
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentwire.data.example import Example
from latentwire.data.hub import hub_problem

log = logging.getLogger(__name__)

MAX_REPORTED = 5
"""Malformed places named one by one before the rest are only counted."""

_ROW_SHAPES = {
    False: '{"context": "...", "question": "...", "answers": ["..."]}',
    True: '{"context": "...", "question": "...", "answers": {"text": ["..."]}}',
}
_SQUAD_SHAPE = '{"data": [{"paragraphs": [{"context": "...", "qas": [...]}]}]}'


class SourceError(ValueError):
    """A data source that cannot be used; ``problems`` has one message for each thing wrong."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, kw_only=True)
class Article:
    """The documents that stay together in one split."""

    key: str
    """Its title; its first context where it has none."""
    documents: tuple[tuple[Example, ...], ...]


class _MalformedError(Exception):
    """One place of a file is wrong; the message has no file or line yet."""


class _Collector:
    """Gathers examples by article and document, and the problems beside them."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.problems: list[str] = []
        self.num_problems = 0
        self.num_unanswerable = 0
        self._documents: dict[str, list[Example]] = {}
        self._articles: dict[str, list[str]] = {}

    def problem(self, place: str, message: str) -> None:
        self.num_problems += 1
        if self.num_problems <= MAX_REPORTED:
            self.problems.append(f"data.path: {self.where}{place}: {message}")

    def add(self, article: str | None, example: Example | None) -> None:
        """Files an example; None is a question without an answer, which is only counted."""
        if example is None:
            self.num_unanswerable += 1
            return
        if example.context not in self._documents:
            self._documents[example.context] = []
            self._articles.setdefault(article or example.context, []).append(example.context)
        self._documents[example.context].append(example)

    def articles(self) -> tuple[Article, ...]:
        """What was gathered, in the file's order; raises SourceError for any problem."""
        if self.num_problems > MAX_REPORTED:
            more = self.num_problems - MAX_REPORTED
            self.problems.append(f"data.path: {self.where}: ... and {more} more like these")
        if self.problems:
            raise SourceError(self.problems)
        skipped = f"{self.num_unanswerable} unanswerable questions were skipped"
        if not self._documents:
            raise SourceError([f"data.path: {self.where} holds no usable example ({skipped})"])
        if self.num_unanswerable:
            log.info("%s: %s", self.where, skipped)
        return tuple(
            Article(key=key, documents=tuple(tuple(self._documents[c]) for c in contexts))
            for key, contexts in self._articles.items()
        )


def read_squad_json(path: Path) -> tuple[Article, ...]:
    """Articles of a SQuAD v1.1 or v2 file. Raises SourceError."""
    collector = _Collector(str(path))
    text = _read_text(path)
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        hint = ""
        if error.msg == "Extra data":
            hint = "; if the file has one object a line, name it .jsonl"
        raise SourceError(
            [f"data.path: {path}:{error.lineno}:{error.colno}: invalid JSON: {error.msg}{hint}"]
        ) from None
    except (ValueError, RecursionError) as error:
        raise SourceError([f"data.path: {path}: invalid JSON: {error}"]) from None
    if not isinstance(tree, dict) or not isinstance(tree.get("data"), list):
        raise SourceError(
            [
                f"data.path: {path} has no list `data`: a SQuAD file is {_SQUAD_SHAPE}; "
                "for one object a line set `data.source: jsonl`"
            ]
        )
    for number, entry in enumerate(tree["data"]):
        place = f"data[{number}]"
        try:
            title = _optional_text(_mapping(entry), "title")
            paragraphs = _list(entry, "paragraphs")
        except _MalformedError as error:
            collector.problem(f": {place}", str(error))
            continue
        contexts: list[str] = []
        for index, paragraph in enumerate(paragraphs):
            here = f"{place}.paragraphs[{index}]"
            try:
                contexts.append(_text(_mapping(paragraph), "context"))
                questions = _list(paragraph, "qas")
            except _MalformedError as error:
                collector.problem(f": {here}", str(error))
                continue
            for position, entry_qa in enumerate(questions):
                try:
                    # An entry without a title is known by its first context.
                    collector.add(title or contexts[0], _squad_question(contexts[-1], entry_qa))
                except _MalformedError as error:
                    collector.problem(f": {here}.qas[{position}]", str(error))
    return collector.articles()


def read_jsonl(path: Path, *, squad: bool) -> tuple[Article, ...]:
    """Articles of a file with one object a line. Raises SourceError.

    Args:
        path: the file.
        squad: rows are SQuAD's: answers may be ``{"text": [...]}``, and rows without one are
            skipped.
    """
    collector = _Collector(str(path))
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = _parse_line(line)
            collector.add(_optional_text(row, "title"), _row_example(row, squad=squad))
        except _MalformedError as error:
            collector.problem(f":{number}", str(error))
    return collector.articles()


def read_parquet(path: Path) -> tuple[Article, ...]:
    """Articles of a parquet file with SQuAD's columns. Raises SourceError."""
    _read_bytes(path)
    if importlib.util.find_spec("pyarrow") is None:
        raise SourceError([_missing_library("pyarrow", f"to read {path}")])
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise SourceError([f"data.path: {path} is no readable parquet file: {error}"]) from None
    return _squad_table(str(path), table.column_names, iter(table.to_pylist()))


def read_hub(name: str, split: str) -> tuple[Article, ...]:
    """Articles of one split of a hub data set with SQuAD's columns. Raises SourceError.

    A copy in the local cache is used as it is, without asking the hub.
    """
    if importlib.util.find_spec("datasets") is None:
        raise SourceError([_missing_library("datasets", f"to get {name} from the hub")])
    if _is_prepared(name):
        rows = _load_hub(name, split, from_cache=True)
    else:
        problem = hub_problem(f"data set {name}")
        if problem is not None:
            raise SourceError([f"data.path: {problem}"])
        rows = _load_hub(name, split, from_cache=False)
    return _squad_table(f"{name} ({split})", list(rows.column_names), iter(rows))


def _load_hub(name: str, split: str, *, from_cache: bool) -> Any:
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    try:
        # With the library's own switch it goes straight to its cache; without, a hub that cannot
        # be reached costs minutes of retries first.
        datasets.config.HF_HUB_OFFLINE = before or from_cache
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # The library raises about anything; all of it is about the input.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(
            [
                f"data.path: cannot load split `{split}` of the hub data set {name}: {reason} "
                "(if a local file was meant, there is none of this name)"
            ]
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _is_prepared(name: str) -> bool:
    """Whether the ``datasets`` library has the data set ready in its cache."""
    import datasets

    owner, _, base = name.rpartition("/")
    base = datasets.naming.camelcase_to_snakecase(base)
    folder = f"{owner}___{base}" if owner else base
    root = Path(datasets.config.HF_DATASETS_CACHE) / folder
    # config name / version / hash / dataset_info.json
    return any(root.glob("*/*/*/dataset_info.json"))


def _squad_table(
    where: str, columns: list[str], rows: Iterator[dict[str, Any]]
) -> tuple[Article, ...]:
    missing = [name for name in ("context", "question", "answers") if name not in columns]
    if missing:
        raise SourceError(
            [
                f"data.path: {where} has no column {', '.join(missing)} (it has: "
                f"{', '.join(columns)}); needed are context, question and answers"
            ]
        )
    collector = _Collector(where)
    for number, row in enumerate(rows, start=1):
        try:
            collector.add(_optional_text(row, "title"), _row_example(row, squad=True))
        except _MalformedError as error:
            collector.problem(f": row {number}", str(error))
    return collector.articles()


def _missing_library(library: str, purpose: str) -> str:
    return f"data.path: {library} is needed {purpose}: pip install 'latentwire[data]'"


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise SourceError([f"data.path: {path} is a directory; give a file in it"])
        if path.exists() and not path.is_file():
            raise SourceError([f"data.path: {path} is not a regular file"])
        if not path.exists():
            raise SourceError(
                [
                    f"data.path: no such file: {path} (relative paths start at "
                    f"{os.path.abspath(os.curdir)})"
                ]
            )
        content = path.read_bytes()
    except OSError as error:
        raise SourceError([f"data.path: cannot read {path}: {error.strerror or error}"]) from None
    if not content.removeprefix(codecs.BOM_UTF8).strip():
        raise SourceError([f"data.path: {path} is empty"])
    return content


def _read_text(path: Path) -> str:
    content = _read_bytes(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SourceError(
            [
                f"data.path: {path}:{line}: not UTF-8 (byte 0x{content[error.start]:02x}); convert "
                "the file, e.g. with iconv -t UTF-8"
            ]
        ) from None


def _parse_line(line: str) -> dict[str, Any]:
    try:
        return _mapping(json.loads(line))
    except json.JSONDecodeError as error:
        raise _MalformedError(f"invalid JSON at column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise _MalformedError(f"invalid JSON: {error}") from None


def _row_example(row: dict[str, Any], *, squad: bool) -> Example | None:
    if "context" not in row and isinstance(row.get("data"), list):
        hint = "" if squad else " and set `data.source: squad`"
        raise _MalformedError(f"this is a whole SQuAD file: name it .json{hint}")
    shape = _ROW_SHAPES[squad]
    context, question = _text(row, "context", shape), _text(row, "question", shape)
    answers = row.get("answers")
    if squad and isinstance(answers, dict):
        answers = answers.get("text")
    elif isinstance(answers, str) and not squad:
        answers = [answers]
    if not isinstance(answers, list):
        raise _MalformedError(f"`answers` is {_kind(row, 'answers')}; a row is {shape}")
    if squad:
        # Some exports hold SQuAD's answers as a list of objects.
        answers = [item.get("text") if isinstance(item, dict) else item for item in answers]
        if not answers:
            return None
    kind = "plain" if squad else _optional_text(row, "kind") or "plain"
    return Example(context=context, question=question, answers=_answers(answers), kind=kind)


def _squad_question(context: str, value: Any) -> Example | None:
    entry = _mapping(value)
    question = _text(entry, "question")
    impossible = entry.get("is_impossible", False)
    if not isinstance(impossible, bool):
        raise _MalformedError(
            f"`is_impossible` is {_kind(entry, 'is_impossible')}, not true or false"
        )
    if impossible:
        return None
    found = _list(entry, "answers")
    answers = [_mapping(answer).get("text") for answer in found]
    if not answers:
        return None
    return Example(context=context, question=question, answers=_answers(answers))


def _answers(values: list[Any]) -> tuple[str, ...]:
    if not values:
        raise _MalformedError("`answers` is empty; at least one answer is needed")
    texts = [_clean(value, f"`answers[{index}]`") for index, value in enumerate(values)]
    return tuple(dict.fromkeys(texts))


def _text(row: dict[str, Any], key: str, shape: str = "") -> str:
    if row.get(key) is None:
        raise _MalformedError(
            f"`{key}` is {_kind(row, key)}" + (f"; a row is {shape}" if shape else "")
        )
    return _clean(row[key], f"`{key}`")


def _optional_text(row: dict[str, Any], key: str) -> str | None:
    value = row.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return _clean(value, f"`{key}`")


def _clean(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _MalformedError(f"{name} is {_kind({'': value}, '')}, not a string")
    # JSON can escape half of a surrogate pair, which no tokenizer can encode.
    if re.search("[\ud800-\udfff]", value):
        raise _MalformedError(f"{name} holds an unpaired surrogate, which is no character")
    text = value.strip()
    if not text:
        raise _MalformedError(f"{name} is empty")
    return text


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _MalformedError(f"this is {_kind({'': value}, '')}, not an object")
    return value


def _list(row: dict[str, Any], key: str) -> list[Any]:
    value = row.get(key)
    if not isinstance(value, list):
        raise _MalformedError(f"`{key}` is {_kind(row, key)}, not a list")
    return value


def _kind(row: dict[str, Any], key: str) -> str:
    """What stands under a key, in JSON's words."""
    if key not in row:
        return "missing"
    value = row[key]
    names = {str: "a string", list: "a list", dict: "an object", bool: str(value).lower()}
    return "null" if value is None else names.get(type(value), f"the number {value!r:.20}")
