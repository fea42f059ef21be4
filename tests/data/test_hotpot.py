"""HotpotQA from files of either layout, and what is said about wrong ones."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hotpot_cases import NUM_PARAGRAPHS, SUPPORT, of_the_hub, official, paragraph
from source_cases import (
    SPLITS,
    contents,
    contexts,
    needs_pyarrow,
    one_problem,
    problems,
    write_lines,
)

from latentwire.data.hotpot import Setting


def write(folder: Path, tree: Any) -> str:
    path = folder / "hotpot.json"
    path.write_text(json.dumps(tree))
    return str(path)


# --- what is read


@pytest.mark.parametrize(
    ("setting", "places"), [("distractor", range(NUM_PARAGRAPHS)), ("gold", SUPPORT)]
)
def test_context_is_every_paragraph_or_the_supporting_ones_in_order(
    tmp_path: Path, setting: Setting, places: Sequence[int]
) -> None:
    path = write(tmp_path, [official(i) for i in range(20)])
    assert problems("hotpot", path, setting=setting) == []
    found = contents("hotpot", path, setting=setting)
    assert [len(found[split]) for split in SPLITS] == [16, 2, 2]
    for example in (example for examples in found.values() for example in examples):
        number = int(example.question.split()[1][:-1])
        assert example.context.split("\n") == [paragraph(number, i) for i in places]
        assert example.kind == ("comparison" if number % 2 else "bridge")
        assert example.answers == ("yes" if number % 2 else f"answer {number}",)


@pytest.mark.parametrize("setting", ["distractor", "gold"])
def test_both_layouts_and_every_format_are_the_same_data(tmp_path: Path, setting: Setting) -> None:
    rows = [of_the_hub(i) for i in range(9)]
    paths = [
        write(tmp_path, [official(i) for i in range(9)]),
        write_lines(tmp_path, [official(i) for i in range(9)], "official.jsonl"),
        write_lines(tmp_path, [*rows, ""], "hub.jsonl"),
    ]
    first, *others = (contents("hotpot", path, setting=setting) for path in paths)
    assert all(other == first for other in others)


@needs_pyarrow
def test_parquet_of_the_hub(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"

    def save(rows: list[dict[str, Any]]) -> str:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return str(path)

    rows = [of_the_hub(i) for i in range(9)]
    expected = contents("hotpot", write_lines(tmp_path, rows), setting="gold")
    assert contents("hotpot", save(rows), setting="gold") == expected
    rows[4]["answer"] = " "
    assert "rows.parquet: row 5: `answer` is empty" in one_problem("hotpot", save(rows))
    bare = [of_the_hub(i, supporting_facts=None) for i in range(9)]
    assert problems("hotpot", save(bare)) == []
    assert "no column supporting_facts" in one_problem("hotpot", save(bare), setting="gold")


def test_split_is_the_same_for_both_settings(tmp_path: Path) -> None:
    rows = [official(i) for i in range(30)]
    both = [contents("hotpot", write(tmp_path, rows), setting=s) for s in ("distractor", "gold")]
    questions = [{s: {e.question for e in found[s]} for s in SPLITS} for found in both]
    assert questions[0] == questions[1]
    assert contexts(both[0]) != contexts(both[1])


def test_questions_on_one_context_are_one_document(tmp_path: Path) -> None:
    again = official(0, _id="again", question="Something else?")
    found = contents("hotpot", write(tmp_path, [official(i) for i in range(6)] + [again]))
    home = [
        s for s in SPLITS if {"Question 0?", "Something else?"} & {e.question for e in found[s]}
    ]
    assert len(home) == 1, "both in one split"
    assert sum(len(group) for group in contexts(found).values()) == 6


def test_paragraphs_without_a_sentence_are_left_out(tmp_path: Path) -> None:
    context = [["Empty", []], ["Blank", [" "]], [" Full ", ["One.", "", " Two. "]]]
    rows = [official(i, context=context, type=None) for i in range(4)]
    rows += [official(i) for i in (4, 5, 6)]
    examples = [e for found in contents("hotpot", write(tmp_path, rows)).values() for e in found]
    short = [example for example in examples if example.context == "Full: One. Two."]
    assert len(short) == 4
    assert {example.kind for example in short} == {"plain"}


# --- what is wrong with it


def test_a_file_of_something_else(tmp_path: Path) -> None:
    assert "is an object, and a HotpotQA file is a list" in one_problem(
        "hotpot", write(tmp_path, {"data": []})
    )
    (tmp_path / "a.txt").write_text("hello")
    assert "`data.source: hotpot` reads .json (" in one_problem("hotpot", str(tmp_path / "a.txt"))
    assert "no such file" in one_problem("hotpot", "data/none.json")
    message = one_problem("hotpot", write(tmp_path, [official(0), official(1)]))
    assert "has 2 article(s) (rows of one `_id`" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"answer": None}, "`answer` is missing; a row is {"),
        ({"question": 3}, "`question` is the number 3, not a string"),
        ({"type": ["bridge"]}, "`type` is a list, not a string"),
        ({"context": None}, "`context` is missing; a row is {"),
        ({"context": "text"}, "`context` is a string; a row is {"),
        ({"context": []}, "`context` holds no sentence"),
        ({"context": [["a", []]]}, "`context` holds no sentence"),
        ({"context": [["a", ["b"]], "c"]}, "`context[1]` is a string, not a list of two"),
        ({"context": [["a", ["b"], 0]]}, "`context[0]` is a list of 3, not of two"),
        ({"context": [["a", "b"]]}, "the sentences of `context[0]` are a string, not a list"),
        ({"context": [["a", ["b", 5]]]}, "a sentence of `context[0]` is the number 5, not a"),
        ({"context": [["a", ["\ud800"]]]}, "a sentence of `context[0]` holds an unpaired"),
        ({"context": [[" ", ["b"]]]}, "the title of `context[0]` is empty"),
        ({"context": {"title": ["a"]}}, "`context.sentences` is missing, not a list"),
        ({"context": {"title": ["a"], "sentences": []}}, "`context` has 1 titles, but 0 lists of"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    rows = [official(0), official(1, **changes), official(2), official(3)]
    path = write(tmp_path, rows)
    assert f"{path}: [1]: {expected}" in one_problem("hotpot", path)
    path = write_lines(tmp_path, rows)
    assert f"{path}:2: {expected}" in one_problem("hotpot", path)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (None, "`supporting_facts` is missing, which data.setting=gold needs"),
        ([], "`supporting_facts` is empty"),
        ([["Page 1.2"]], "`supporting_facts[0]` is a list of 1, not of two"),
        ({"sent_id": [0]}, "`supporting_facts.title` is missing, not a list"),
        ([["Page 1.2", 0], ["Nowhere", 0]], "`supporting_facts` names 'Nowhere', which"),
    ],
)
def test_wrong_support_matters_to_gold_only(tmp_path: Path, facts: Any, expected: str) -> None:
    rows = [official(0), official(1, supporting_facts=facts), official(2), official(3)]
    path = write(tmp_path, rows)
    assert f"{path}: [1]: {expected}" in one_problem("hotpot", path, setting="gold")
    assert problems("hotpot", path) == []


def test_lines_that_are_no_json_and_many_bad_rows(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [official(0), "oops", official(1)])
    assert f"{path}:2: invalid JSON" in one_problem("hotpot", path)
    found = problems("hotpot", write(tmp_path, [official(0)] + [official(1, answer=None)] * 9))
    assert len(found) == 6
    assert "... and 4 more" in found[-1]
