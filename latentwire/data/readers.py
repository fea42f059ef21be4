"""Reads SQuAD files and JSON lines into articles, and says everything that is wrong with them."""

from pathlib import Path
from typing import Any

from latentwire.data.articles import Article, Collector, SourceError
from latentwire.data.example import Example
from latentwire.data.fields import (
    MalformedError,
    clean,
    kind_at,
    list_at,
    mapping,
    optional_text,
    text_at,
)
from latentwire.data.rows import Table, parse_line, read_json, read_lines, read_parquet

_ROW_SHAPES = {
    False: '{"context": "...", "question": "...", "answers": ["..."]}',
    True: '{"context": "...", "question": "...", "answers": {"text": ["..."]}}',
}
_SQUAD_SHAPE = '{"data": [{"paragraphs": [{"context": "...", "qas": [...]}]}]}'


def read_squad(path: Path) -> tuple[Article, ...]:
    """Articles of a file by its suffix: .jsonl, .parquet, or else SQuAD v1.1 or v2 as JSON.

    Raises SourceError.
    """
    match path.suffix.lower():
        case ".jsonl":
            return read_jsonl(path, squad=True)
        case ".parquet":
            return squad_table(read_parquet(path))
    return _read_squad_json(path)


def _read_squad_json(path: Path) -> tuple[Article, ...]:
    tree = read_json(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("data"), list):
        raise SourceError(
            [
                f"data.path: {path} has no list `data`: a SQuAD file is {_SQUAD_SHAPE}; "
                "for one object a line set `data.source: jsonl`"
            ]
        )
    collector = Collector(str(path))
    for number, entry in enumerate(tree["data"]):
        place = f"data[{number}]"
        try:
            title = optional_text(mapping(entry), "title")
            paragraphs = list_at(entry, "paragraphs")
        except MalformedError as error:
            collector.problem(f": {place}", str(error))
            continue
        contexts: list[str] = []
        for index, paragraph in enumerate(paragraphs):
            here = f"{place}.paragraphs[{index}]"
            try:
                contexts.append(text_at(mapping(paragraph), "context"))
                questions = list_at(paragraph, "qas")
            except MalformedError as error:
                collector.problem(f": {here}", str(error))
                continue
            for position, entry_qa in enumerate(questions):
                try:
                    # An entry without a title is known by its first context.
                    collector.add(title or contexts[0], _squad_question(contexts[-1], entry_qa))
                except MalformedError as error:
                    collector.problem(f": {here}.qas[{position}]", str(error))
    return collector.articles()


def read_jsonl(path: Path, *, squad: bool) -> tuple[Article, ...]:
    """Articles of a file with one object a line. Raises SourceError.

    Args:
        path: the file.
        squad: rows are SQuAD's: answers may be ``{"text": [...]}``, and rows without one are
            skipped.
    """
    collector = Collector(str(path))
    for number, line in read_lines(path):
        try:
            row = parse_line(line)
            collector.add(optional_text(row, "title"), _row_example(row, squad=squad))
        except MalformedError as error:
            collector.problem(f":{number}", str(error))
    return collector.articles()


def squad_table(table: Table) -> tuple[Article, ...]:
    """Articles of a table with SQuAD's columns. Raises SourceError."""
    table.require("context", "question", "answers")
    collector = Collector(table.where)
    for number, row in enumerate(table.rows, start=1):
        try:
            collector.add(optional_text(row, "title"), _row_example(row, squad=True))
        except MalformedError as error:
            collector.problem(f": row {number}", str(error))
    return collector.articles()


def _row_example(row: dict[str, Any], *, squad: bool) -> Example | None:
    if "context" not in row and isinstance(row.get("data"), list):
        hint = "" if squad else " and set `data.source: squad`"
        raise MalformedError(f"this is a whole SQuAD file: name it .json{hint}")
    shape = _ROW_SHAPES[squad]
    context, question = text_at(row, "context", shape), text_at(row, "question", shape)
    answers = row.get("answers")
    if squad and isinstance(answers, dict):
        answers = answers.get("text")
    elif isinstance(answers, str) and not squad:
        answers = [answers]
    if not isinstance(answers, list):
        raise MalformedError(f"`answers` is {kind_at(row, 'answers')}; a row is {shape}")
    if squad:
        # Some exports hold SQuAD's answers as a list of objects.
        answers = [item.get("text") if isinstance(item, dict) else item for item in answers]
        if not answers:
            return None
    kind = "plain" if squad else optional_text(row, "kind") or "plain"
    return Example(context=context, question=question, answers=_answers(answers), kind=kind)


def _squad_question(context: str, value: Any) -> Example | None:
    entry = mapping(value)
    question = text_at(entry, "question")
    impossible = entry.get("is_impossible", False)
    if not isinstance(impossible, bool):
        raise MalformedError(
            f"`is_impossible` is {kind_at(entry, 'is_impossible')}, not true or false"
        )
    if impossible:
        return None
    found = list_at(entry, "answers")
    answers = [mapping(answer).get("text") for answer in found]
    if not answers:
        return None
    return Example(context=context, question=question, answers=_answers(answers))


def _answers(values: list[Any]) -> tuple[str, ...]:
    if not values:
        raise MalformedError("`answers` is empty; at least one answer is needed")
    texts = [clean(value, f"`answers[{index}]`") for index, value in enumerate(values)]
    return tuple(dict.fromkeys(texts))
