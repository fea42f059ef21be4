"""What readers say about files that are wrong."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from source_cases import one_problem, problems, row, squad, write_json, write_lines

from latentwire.data.articles import MAX_REPORTED

# --- files that cannot be read


@pytest.mark.parametrize("source", ["squad", "jsonl"])
def test_missing_file_and_directory(tmp_path: Path, source: str) -> None:
    missing = str(tmp_path / "none.json")
    assert f"no such file: {missing}" in one_problem(source, missing)
    assert "no such file: data/none.json" in one_problem(source, "data/none.json")
    assert "is a directory" in one_problem(source, str(tmp_path))
    assert "the path is empty" in one_problem(source, "")
    assert "no such file" in one_problem(source, "x\0y.json")


def test_jsonl_needs_a_path() -> None:
    assert "set data.path" in one_problem("jsonl", None)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    assert "not a regular file" in one_problem("jsonl", str(pipe))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all files")
def test_unreadable_file(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [row(0)])
    Path(path).chmod(0)
    assert "Permission denied" in one_problem("jsonl", path)


@pytest.mark.parametrize("content", [b"", b"\n  \n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet"])
def test_empty_file(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert one_problem("squad", str(path)).endswith("is empty")


def test_wrong_encoding_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = "\n".join(json.dumps(row(i, question="caf\u00e9"), ensure_ascii=False) for i in range(3))
    path.write_bytes(text.replace("caf\u00e9", "ok", 1).encode("latin-1"))
    message = one_problem("jsonl", str(path))
    assert f"{path}:2: not UTF-8 (byte 0xe9)" in message


def test_unknown_suffix(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("hello")
    assert "reads .json" in one_problem("squad", str(path))


# --- SQuAD JSON that is wrong


def test_invalid_json_has_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"data": [\n  {"title": oops}\n]}')
    assert f"{path}:2:13: invalid JSON" in one_problem("squad", str(path))
    path.write_text(json.dumps(row(0)) + "\n" + json.dumps(row(1)))
    assert "name it .jsonl" in one_problem("squad", str(path))


def test_deeply_nested_json_is_a_message(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" * 200_000)
    assert "invalid JSON" in one_problem("squad", str(path))


@pytest.mark.parametrize("tree", [[], {}, {"data": {}}, 3, None, row(0)])
def test_json_without_data(tmp_path: Path, tree: Any) -> None:
    assert "has no list `data`" in one_problem("squad", write_json(tmp_path, tree))


def at(tree: Any, *keys: Any) -> Any:
    for key in keys:
        tree = tree[key]
    return tree


PARAGRAPH = ("data", 3, "paragraphs", 0)


@pytest.mark.parametrize(
    ("keys", "value", "expected"),
    [
        (("data", 3), 5, "data[3]: this is the number 5, not an object"),
        (("data", 3, "title"), 5, "data[3]: `title` is the number 5, not a string"),
        (("data", 3, "paragraphs"), None, "data[3]: `paragraphs` is null, not a list"),
        (PARAGRAPH, "p", "data[3].paragraphs[0]: this is a string, not an object"),
        ((*PARAGRAPH, "context"), " ", "data[3].paragraphs[0]: `context` is empty"),
        ((*PARAGRAPH, "qas"), {}, "data[3].paragraphs[0]: `qas` is an object, not a list"),
        ((*PARAGRAPH, "qas", 1), [], "paragraphs[0].qas[1]: this is a list, not an object"),
        ((*PARAGRAPH, "qas", 1, "question"), "", "qas[1]: `question` is empty"),
        ((*PARAGRAPH, "qas", 1, "question"), True, "qas[1]: `question` is true, not a string"),
        ((*PARAGRAPH, "qas", 1, "answers"), "x", "qas[1]: `answers` is a string, not a list"),
        ((*PARAGRAPH, "qas", 1, "answers"), ["x"], "qas[1]: this is a string, not an object"),
        ((*PARAGRAPH, "qas", 1, "answers", 0), {}, "`answers[0]` is null, not a string"),
        ((*PARAGRAPH, "qas", 1, "answers", 0, "text"), "", "qas[1]: `answers[0]` is empty"),
        ((*PARAGRAPH, "qas", 1, "is_impossible"), "no", "`is_impossible` is a string"),
        ((*PARAGRAPH, "context"), "\ud800", "`context` holds an unpaired surrogate"),
    ],
)
def test_wrong_squad_values_have_a_json_path(
    tmp_path: Path, keys: tuple[Any, ...], value: Any, expected: str
) -> None:
    tree = squad(5)
    at(tree, *keys[:-1])[keys[-1]] = value
    path = write_json(tmp_path, tree)
    message = one_problem("squad", path)
    assert path in message and expected in message


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        (("data", 3), "paragraphs"),
        (PARAGRAPH, "context"),
        (PARAGRAPH, "qas"),
        ((*PARAGRAPH, "qas", 0), "question"),
        ((*PARAGRAPH, "qas", 0), "answers"),
    ],
)
def test_missing_squad_keys(tmp_path: Path, keys: tuple[Any, ...], key: str) -> None:
    tree = squad(5)
    del at(tree, *keys)[key]
    assert f"`{key}` is missing" in one_problem("squad", write_json(tmp_path, tree))


# --- JSON lines that are wrong


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ('{"context": ', ":2: invalid JSON at column 13"),
        ("[1, 2]", ":2: this is a list, not an object"),
        ("null", ":2: this is null, not an object"),
        (row(1, context=None), ":2: `context` is missing"),
        (row(1, question=None), ":2: `question` is missing"),
        (row(1, answers=None), ":2: `answers` is missing"),
        (row(1, context=["c"]), ":2: `context` is a list, not a string"),
        (row(1, context=""), ":2: `context` is empty"),
        (row(1, question=" \n"), ":2: `question` is empty"),
        (row(1, answers=[]), ":2: `answers` is empty"),
        (row(1, answers=""), ":2: `answers[0]` is empty"),
        (row(1, answers=["ok", " "]), ":2: `answers[1]` is empty"),
        (row(1, answers=["ok", 3]), ":2: `answers[1]` is the number 3, not a string"),
        (row(1, answers=7), ":2: `answers` is the number 7"),
        (row(1, answers={"text": ["a"]}), ":2: `answers` is an object"),
        (row(1, title=4), ":2: `title` is the number 4, not a string"),
        (row(1, kind=[]), ":2: `kind` is a list, not a string"),
        (row(1, question="\udc00"), ":2: `question` holds an unpaired surrogate"),
        ({"data": []}, ":2: this is a whole SQuAD file"),
        ('{"context": ' + "9" * 5000 + "}", ":2: "),
    ],
)
def test_wrong_lines(tmp_path: Path, bad: Any, expected: str) -> None:
    path = write_lines(tmp_path, [row(0), bad, row(2), row(3)])
    assert f"{path}{expected}" in one_problem("jsonl", path)


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [row(0), "", "", "oops", row(1)])
    assert f"{path}:4: " in one_problem("jsonl", path)


def test_many_bad_lines_are_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [row(0), *(["oops"] * 12)])
    found = problems("jsonl", path)
    assert len(found) == MAX_REPORTED + 1
    assert [f"{path}:{line}:" in found[line - 2] for line in range(2, 7)] == [True] * 5
    assert "... and 7 more" in found[-1]
    exactly = write_lines(tmp_path, [row(0), *(["oops"] * 5)])
    assert len(problems("jsonl", exactly)) == 5


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [row(i) for i in range(3)])
    assert problems("jsonl", path) == []
    write_lines(tmp_path, [row(0), "oops"])
    assert "invalid JSON" in one_problem("jsonl", path)
