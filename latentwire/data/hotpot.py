"""Reads HotpotQA (Yang et al., 2018): questions whose answer needs two paragraphs together.

Both layouts of the data set are read, wherever they stand: the official file's
``context: [[title, [sentence, ...]], ...]`` and ``supporting_facts: [[title, number], ...]``, and
the hub's ``context: {title: [...], sentences: [[...], ...]}`` and
``supporting_facts: {title: [...], sent_id: [...]}``.

A context is text, one paragraph a line in the order of the file, each opened by its title, since
paragraphs often name their subject nowhere else::

    Title: First sentence. Second sentence.
    Other title: ...
"""

from pathlib import Path
from typing import Any, Literal

from latentwire.data.articles import Article, Collector, SourceError
from latentwire.data.example import Example
from latentwire.data.fields import (
    MalformedError,
    clean,
    kind,
    kind_at,
    mapping,
    optional_text,
    string,
    text_at,
)
from latentwire.data.rows import Table, parse_line, read_json, read_lines, read_parquet

Setting = Literal["distractor", "gold"]
"""``distractor``: all paragraphs, ten as a rule. ``gold``: those named in ``supporting_facts``."""

HUB_NAME = "hotpotqa/hotpot_qa"
HUB_VARIANT = "distractor"
"""The hub's other variant has retrieved paragraphs, which may lack the answer's support."""

_SHAPE = (
    '{"_id": "...", "question": "...", "answer": "...", "type": "...", '
    '"context": [["title", ["sentence", ...]], ...], "supporting_facts": [["title", 0], ...]}'
)


def read_hotpot(path: Path, *, setting: Setting) -> tuple[Article, ...]:
    """Articles of a file by its suffix: .jsonl, .parquet, or else one list of objects as JSON.

    Raises SourceError.
    """
    match path.suffix.lower():
        case ".jsonl":
            return _read_lines(path, setting)
        case ".parquet":
            return hotpot_table(read_parquet(path), setting=setting)
    return _read_list(path, setting)


def hotpot_table(table: Table, *, setting: Setting) -> tuple[Article, ...]:
    """Articles of a table with the hub's columns. Raises SourceError."""
    support = ("supporting_facts",) if setting == "gold" else ()
    table.require("question", "answer", "context", *support)
    collector = Collector(table.where)
    for number, row in enumerate(table.rows, start=1):
        _add(collector, f": row {number}", row, setting)
    return collector.articles()


def _read_list(path: Path, setting: Setting) -> tuple[Article, ...]:
    tree = read_json(path)
    if not isinstance(tree, list):
        raise SourceError(
            [f"data.path: {path} is {kind(tree)}, and a HotpotQA file is a list of {_SHAPE}"]
        )
    collector = Collector(str(path))
    for number, entry in enumerate(tree):
        _add(collector, f": [{number}]", entry, setting)
    return collector.articles()


def _read_lines(path: Path, setting: Setting) -> tuple[Article, ...]:
    collector = Collector(str(path))
    for number, line in read_lines(path):
        try:
            row = parse_line(line)
        except MalformedError as error:
            collector.problem(f":{number}", str(error))
            continue
        _add(collector, f":{number}", row, setting)
    return collector.articles()


def _add(collector: Collector, place: str, entry: Any, setting: Setting) -> None:
    """Files one row as an article of its own: questions have no title to be kept together by."""
    try:
        row = mapping(entry)
        key = optional_text(row, "_id") or optional_text(row, "id")
        collector.add(key, _example(row, setting))
    except MalformedError as error:
        collector.problem(place, str(error))


def _example(row: dict[str, Any], setting: Setting) -> Example:
    question, answer = text_at(row, "question", _SHAPE), text_at(row, "answer", _SHAPE)
    paragraphs = _paragraphs(row)
    if setting == "gold":
        paragraphs = _supporting(row, paragraphs)
    lines = [f"{title}: {text}" for title, text in paragraphs if text]
    if not lines:
        raise MalformedError("`context` holds no sentence")
    label = optional_text(row, "type") or "plain"
    return Example(context="\n".join(lines), question=question, answers=(answer,), kind=label)


def _paragraphs(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(title, text) of each paragraph, in order."""
    context = row.get("context")
    if isinstance(context, dict):
        titles = _column(context, "context", "title")
        sentences = _column(context, "context", "sentences")
        if len(titles) != len(sentences):
            raise MalformedError(
                f"`context` has {len(titles)} titles, but {len(sentences)} lists of sentences"
            )
        pairs = list(zip(titles, sentences, strict=True))
    elif isinstance(context, list):
        pairs = [_pair(item, f"`context[{index}]`") for index, item in enumerate(context)]
    else:
        raise MalformedError(f"`context` is {kind_at(row, 'context')}; a row is {_SHAPE}")
    found = []
    for index, (title, sentences) in enumerate(pairs):
        name = f"`context[{index}]`"
        if not isinstance(sentences, list):
            raise MalformedError(f"the sentences of {name} are {kind(sentences)}, not a list")
        texts = [string(sentence, f"a sentence of {name}").strip() for sentence in sentences]
        found.append((clean(title, f"the title of {name}"), " ".join(filter(None, texts))))
    return found


def _supporting(row: dict[str, Any], paragraphs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The paragraphs that ``supporting_facts`` names, in the order of the context."""
    facts = row.get("supporting_facts")
    if isinstance(facts, dict):
        titles = _column(facts, "supporting_facts", "title")
    elif isinstance(facts, list):
        pairs = [_pair(item, f"`supporting_facts[{i}]`") for i, item in enumerate(facts)]
        titles = [title for title, _ in pairs]
    else:
        raise MalformedError(
            f"`supporting_facts` is {kind_at(row, 'supporting_facts')}, which data.setting=gold "
            f"needs; a row is {_SHAPE}"
        )
    if not titles:
        raise MalformedError("`supporting_facts` is empty, which data.setting=gold needs")
    wanted = {clean(title, f"`supporting_facts[{i}]`'s title") for i, title in enumerate(titles)}
    absent = wanted - {title for title, text in paragraphs if text}
    if absent:
        raise MalformedError(
            f"`supporting_facts` names '{min(absent)}', which `context` does not hold; "
            "use data.setting=distractor"
        )
    return [(title, text) for title, text in paragraphs if title in wanted]


def _column(value: dict[str, Any], name: str, key: str) -> list[Any]:
    found = value.get(key)
    if not isinstance(found, list):
        raise MalformedError(f"`{name}.{key}` is {kind_at(value, key)}, not a list")
    return found


def _pair(value: Any, name: str) -> tuple[Any, Any]:
    if not isinstance(value, list):
        raise MalformedError(f"{name} is {kind(value)}, not a list of two")
    if len(value) != 2:
        raise MalformedError(f"{name} is a list of {len(value)}, not of two")
    return value[0], value[1]
