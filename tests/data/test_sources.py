"""Data sources: what they read and how they split it."""

import importlib.util
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from source_cases import (
    SPLITS,
    contents,
    contexts,
    needs_pyarrow,
    one_problem,
    problems,
    row,
    squad,
    write_json,
    write_lines,
)

from latentwire.data import profiles
from latentwire.data.sources import open_source

# --- profiles


def test_profiles_are_random_access_and_sized() -> None:
    for split in SPLITS:
        source = open_source(source="profiles", path=None, setting=None, split=split, seed=1)
        assert source.num_documents == profiles.DOCUMENTS_PER_SPLIT[split]
        assert source.counts() == [profiles.QUESTIONS_PER_DOCUMENT] * source.num_documents
        last = source.num_documents - 1
        assert source.examples(last) == profiles.document(1, split, last).examples
        assert len(source.examples(0)) == profiles.QUESTIONS_PER_DOCUMENT
    assert problems("profiles", None) == []


def test_profiles_refuse_a_path() -> None:
    assert "remove data.path" in one_problem("profiles", "some.json")


def test_unknown_source_lists_the_known() -> None:
    message = one_problem("sqad", None)
    assert message.startswith("data.source: unknown source `sqad`")
    assert "profiles, squad, hotpot, jsonl" in message


# --- good files


def test_squad_json_is_split_by_article(tmp_path: Path) -> None:
    path = write_json(tmp_path, squad(20))
    assert problems("squad", path) == []
    found = contents("squad", path)
    articles = {
        split: {context.split()[1].split(".")[0] for context in group}
        for split, group in contexts(found).items()
    }
    assert [len(articles[split]) for split in SPLITS] == [16, 2, 2]
    assert len(set.union(*articles.values())) == 20, "no article is in two splits"
    assert sum(len(examples) for examples in found.values()) == 80


@pytest.mark.parametrize("num_articles", [3, 4, 5, 9])
@pytest.mark.parametrize("titles", [True, False])
def test_no_split_is_empty(tmp_path: Path, num_articles: int, titles: bool) -> None:
    path = write_json(tmp_path, squad(num_articles, titles=titles))
    found = contents("squad", path)
    assert all(found.values())
    assert sum(len(examples) for examples in found.values()) == 4 * num_articles


@pytest.mark.parametrize(("num_articles", "held_out"), [(5, 1), (6, 2), (14, 2), (30, 3)])
def test_controls_find_two_articles(tmp_path: Path, num_articles: int, held_out: int) -> None:
    rows = [row(index) for index in range(num_articles)]
    found = contents("jsonl", write_lines(tmp_path, rows))
    assert len(found["validation"]) == len(found["test"]) == held_out


def test_split_depends_on_the_seed_only(tmp_path: Path) -> None:
    tree = squad(30)
    first = contexts(contents("squad", write_json(tmp_path, tree), seed=5))
    other = contexts(contents("squad", write_json(tmp_path, tree), seed=6))
    tree["data"].reverse()
    again = contexts(contents("squad", write_json(tmp_path, tree), seed=5))
    assert again == first
    assert other["test"] != first["test"]


def own_file(folder: Path, numbers: range, name: str = "own.jsonl") -> str:
    return write_lines(folder, [row(number) for number in numbers], name)


@pytest.mark.parametrize("keys", [("test",), ("validation",), ("validation", "test")])
def test_a_split_may_be_a_file_of_its_own(keys: tuple[str, ...], tmp_path: Path) -> None:
    path = own_file(tmp_path, range(20), "rows.jsonl")
    own = {
        f"{key}_path": own_file(tmp_path, range(100 * place, 100 * place + 5), f"{key}.jsonl")
        for place, key in enumerate(keys, start=1)
    }
    found = contexts(contents("jsonl", path, **own))
    for place, key in enumerate(keys, start=1):
        assert found[key] == {f"Context {100 * place + i}." for i in range(5)}  # type: ignore[index]
    parted = {split: found[split] for split in SPLITS if split not in keys}
    assert sum(map(len, parted.values())) == 20 == len(set().union(*parted.values()))
    assert all(parted.values())
    assert problems("jsonl", path, **own) == []
    # With every split a file, one article is enough to train on.
    both = {key: own_file(tmp_path, range(3, 6)) for key in ("validation_path", "test_path")}
    one = own_file(tmp_path, range(1), "one.jsonl")
    assert len(contents("jsonl", one, **both)["train"]) == 1


def test_what_is_wrong_with_a_file_of_its_own_names_its_key(tmp_path: Path) -> None:
    path = own_file(tmp_path, range(20), "rows.jsonl")
    (problem,) = problems("jsonl", path, test_path=str(tmp_path / "none.jsonl"))
    assert problem.startswith("data.test_path: ") and "none.jsonl" in problem
    (problem,) = problems("jsonl", path, validation_path=" ")
    assert problem.startswith("data.validation_path: the path is empty")
    (problem,) = problems("profiles", None, test_path=path)
    assert problem.startswith("data.test_path: ") and "is generated" in problem


def test_fewer_than_three_articles(tmp_path: Path) -> None:
    assert "2 article(s)" in one_problem("squad", write_json(tmp_path, squad(2)))
    path = write_lines(tmp_path, [row(i, title="same") for i in range(9)])
    assert "1 article(s)" in one_problem("jsonl", path)


def test_unanswerable_questions_are_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A command that an earlier test called keeps the package's records to itself.
    monkeypatch.setattr(logging.getLogger("latentwire"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("latentwire"), "level", logging.INFO)
    tree = squad(3)
    qas = tree["data"][1]["paragraphs"][0]["qas"]
    qas[0] = {"question": "Never?", "answers": [], "is_impossible": True}
    qas.append({"question": "Nobody?", "answers": []})
    with caplog.at_level("INFO"):
        found = contents("squad", write_json(tmp_path, tree))
    assert sum(len(examples) for examples in found.values()) == 11
    assert "2 unanswerable questions were skipped" in caplog.text


def test_only_unanswerable_questions(tmp_path: Path) -> None:
    tree = squad(3)
    for entry in tree["data"]:
        for paragraph in entry["paragraphs"]:
            for qa in paragraph["qas"]:
                qa["answers"] = []
    message = one_problem("squad", write_json(tmp_path, tree))
    assert "no usable example" in message and "12 unanswerable" in message


def test_repeated_contexts_become_one_document(tmp_path: Path) -> None:
    tree = squad(3)
    tree["data"][0]["paragraphs"][1]["context"] = tree["data"][0]["paragraphs"][0]["context"]
    # The same text in another article stays with the first one, or it would be in two splits.
    tree["data"][2]["paragraphs"][1]["context"] = tree["data"][0]["paragraphs"][0]["context"]
    found = contents("squad", write_json(tmp_path, tree))
    groups = contexts(found)
    assert sum(len(group) for group in groups.values()) == 4
    assert len(set.union(*groups.values())) == 4
    sizes = [sum(e.context == "Text 0.0" for e in examples) for examples in found.values()]
    assert sorted(sizes) == [0, 0, 6]


def test_gold_answers_keep_their_order_without_repeats(tmp_path: Path) -> None:
    rows = [row(i, answers=[" b ", "a", "b"]) for i in range(3)]
    found = contents("jsonl", write_lines(tmp_path, rows))
    assert {e.answers for examples in found.values() for e in examples} == {("b", "a")}


def test_jsonl_source(tmp_path: Path) -> None:
    rows: list[Any] = [row(i, title=f"T{i // 2}", answers=f"answer {i}") for i in range(20)]
    rows += ["", "   ", row(3, question="Again?", kind="odd", title="T1")]
    path = write_lines(tmp_path, rows)
    found = contents("jsonl", path)
    every = [example for examples in found.values() for example in examples]
    assert len(every) == 21
    assert [len({e.context for e in found[split]}) for split in SPLITS] == [16, 2, 2]
    odd = next(e for e in every if e.question == "Again?")
    assert (odd.kind, odd.context, odd.answers) == ("odd", "Context 3.", ("answer 3",))
    assert {e.kind for e in every} == {"plain", "odd"}


def test_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = "\r\n".join(json.dumps(row(i)) for i in range(4))
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert sum(len(found) for found in contents("jsonl", str(path)).values()) == 4


def test_line_separators_inside_strings_do_not_end_a_line(tmp_path: Path) -> None:
    rows = [row(i, context=f"left\u2028right {i}") for i in range(3)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    assert sum(len(found) for found in contents("jsonl", str(path)).values()) == 3


def test_squad_rows_in_jsonl(tmp_path: Path) -> None:
    rows = [row(i, answers={"text": [f"a{i}"], "answer_start": [0]}) for i in range(4)]
    rows += [row(4), row(5, answers={"text": []}), row(6, answers=[])]
    found = contents("squad", write_lines(tmp_path, rows))
    assert sum(len(examples) for examples in found.values()) == 5


@needs_pyarrow
def test_squad_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    rows = [row(i, answers={"text": [f"a{i}"], "answer_start": [0]}) for i in range(6)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert sum(len(found) for found in contents("squad", str(path)).values()) == 6

    rows[4]["question"] = " "
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert "rows.parquet: row 5: `question` is empty" in one_problem("squad", str(path))

    bad = [{"context": "c", "text": "t"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(bad), path)
    assert "has no column question, answers" in one_problem("squad", str(path))

    path.write_text("this is not parquet")
    assert "no readable parquet file" in one_problem("squad", str(path))


def test_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.parquet"
    path.write_text("x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    extra = "pip install -e '.[data]'"
    assert extra in one_problem("squad", str(path))
    assert extra in one_problem("squad", None)
    assert extra in one_problem("squad", "some-org/some-set")


def test_the_real_file() -> None:
    default = Path(__file__).parents[2].parent / "shared" / "data" / "xquad.en.json"
    path = Path(os.environ.get("LATENTWIRE_DATA", default))
    if not path.is_file():
        pytest.skip("no xquad.en.json: set LATENTWIRE_DATA to its path")
    assert problems("squad", str(path)) == []
    found = contents("squad", str(path))
    groups = contexts(found)
    assert sum(len(group) for group in groups.values()) == 240
    assert len(set.union(*groups.values())) == 240
    assert sum(len(examples) for examples in found.values()) == 1190
    tree = json.loads(path.read_text(encoding="utf-8"))
    articles = [{p["context"].strip() for p in entry["paragraphs"]} for entry in tree["data"]]
    homes = [[s for s in SPLITS if article & groups[s]] for article in articles]
    assert all(len(home) == 1 for home in homes), "an article is in two splits"
    assert [homes.count([split]) for split in SPLITS] == [38, 5, 5]
