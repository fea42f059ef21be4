"""Data sources: what they read, how they split it, and what they say about bad input."""

import importlib.util
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from latentwire.data import hub, profiles, readers
from latentwire.data.example import Example
from latentwire.data.sources import Split, check_source, open_source

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

needs_pyarrow = pytest.mark.skipif(
    importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed"
)
needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="datasets is not installed"
)


def row(number: int, **changes: Any) -> dict[str, Any]:
    """One good row; a change to None removes the key."""
    entry = {
        "context": f"Context {number}.",
        "question": f"Question {number}?",
        "answers": [f"answer {number}"],
        **changes,
    }
    return {key: value for key, value in entry.items() if value is not None}


def squad(num_articles: int, *, titles: bool = True) -> dict[str, Any]:
    """A SQuAD file of two paragraphs an article and two questions a paragraph."""

    def paragraph(name: str) -> dict[str, Any]:
        qas = [{"question": f"Q{i} {name}?", "answers": [{"text": f"A{i} {name}"}]} for i in (0, 1)]
        return {"context": f"Text {name}", "qas": qas}

    data = []
    for number in range(num_articles):
        entry: dict[str, Any] = {"paragraphs": [paragraph(f"{number}.{i}") for i in (0, 1)]}
        data.append({"title": f"Title {number}", **entry} if titles else entry)
    return {"version": "1.1", "data": data}


def write_json(folder: Path, tree: Any) -> str:
    path = folder / "squad.json"
    path.write_text(json.dumps(tree))
    return str(path)


def write_lines(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return str(path)


def contents(source: str, path: str | None, *, seed: int = 0) -> dict[Split, list[Example]]:
    """Every example by split; the counts are checked on the way."""
    found = {}
    for split in SPLITS:
        opened = open_source(source=source, path=path, split=split, seed=seed)
        documents = [opened.examples(index) for index in range(opened.num_documents)]
        assert opened.counts() == [len(examples) for examples in documents]
        assert all(len({e.context for e in examples}) == 1 for examples in documents)
        found[split] = [example for examples in documents for example in examples]
    return found


def contexts(found: dict[Split, list[Example]]) -> dict[Split, set[str]]:
    return {split: {example.context for example in found[split]} for split in SPLITS}


def one_problem(source: str, path: str | None) -> str:
    """The single message, also what ``open_source`` raises."""
    problems = check_source(source=source, path=path, seed=0)
    assert len(problems) == 1, problems
    assert problems[0].startswith(("data.path: ", "data.source: "))
    with pytest.raises(ValueError) as caught:
        open_source(source=source, path=path, split="train", seed=0)
    assert str(caught.value) == problems[0]
    return problems[0]


# --- profiles


def test_profiles_are_random_access_and_sized() -> None:
    for split in SPLITS:
        source = open_source(source="profiles", path=None, split=split, seed=1)
        assert source.num_documents == profiles.DOCUMENTS_PER_SPLIT[split]
        assert source.counts() == [profiles.QUESTIONS_PER_DOCUMENT] * source.num_documents
        last = source.num_documents - 1
        assert source.examples(last) == profiles.document(1, split, last).examples
        assert len(source.examples(0)) == profiles.QUESTIONS_PER_DOCUMENT
    assert check_source(source="profiles", path=None, seed=1) == []


def test_profiles_refuse_a_path() -> None:
    assert "remove data.path" in one_problem("profiles", "some.json")


def test_unknown_source_lists_the_known() -> None:
    message = one_problem("sqad", None)
    assert message.startswith("data.source: unknown source `sqad`")
    assert "profiles, squad, jsonl" in message


# --- good files


def test_squad_json_is_split_by_article(tmp_path: Path) -> None:
    path = write_json(tmp_path, squad(20))
    assert check_source(source="squad", path=path, seed=0) == []
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


def test_split_depends_on_the_seed_only(tmp_path: Path) -> None:
    tree = squad(30)
    first = contexts(contents("squad", write_json(tmp_path, tree), seed=5))
    other = contexts(contents("squad", write_json(tmp_path, tree), seed=6))
    tree["data"].reverse()
    again = contexts(contents("squad", write_json(tmp_path, tree), seed=5))
    assert again == first
    assert other["test"] != first["test"]


def test_fewer_than_three_articles(tmp_path: Path) -> None:
    assert "2 article(s)" in one_problem("squad", write_json(tmp_path, squad(2)))
    path = write_lines(tmp_path, [row(i, title="same") for i in range(9)])
    assert "1 article(s)" in one_problem("jsonl", path)


def test_unanswerable_questions_are_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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
    extra = "pip install 'latentwire[data]'"
    assert extra in one_problem("squad", str(path))
    assert extra in one_problem("squad", None)
    assert extra in one_problem("squad", "some-org/some-set")


def test_the_real_file() -> None:
    default = Path(__file__).parents[2].parent / "shared" / "data" / "xquad.en.json"
    path = Path(os.environ.get("LATENTWIRE_DATA", default))
    if not path.is_file():
        pytest.skip("no xquad.en.json: set LATENTWIRE_DATA to its path")
    assert check_source(source="squad", path=str(path), seed=0) == []
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
    problems = check_source(source="jsonl", path=path, seed=0)
    assert len(problems) == readers.MAX_REPORTED + 1
    assert [f"{path}:{line}:" in problems[line - 2] for line in range(2, 7)] == [True] * 5
    assert "... and 7 more" in problems[-1]
    exactly = write_lines(tmp_path, [row(0), *(["oops"] * 5)])
    assert len(check_source(source="jsonl", path=exactly, seed=0)) == 5


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [row(i) for i in range(3)])
    assert check_source(source="jsonl", path=path, seed=0) == []
    write_lines(tmp_path, [row(0), "oops"])
    assert "invalid JSON" in one_problem("jsonl", path)


# --- the hub


class _Handler(BaseHTTPRequestHandler):
    status = 200

    def do_HEAD(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No offline switch, no proxy, nothing remembered."""
    for name in (
        "HF_HUB_OFFLINE",
        "HF_DATASETS_OFFLINE",
        "HF_ENDPOINT",
        "http_proxy",
        "HTTP_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    hub._unreachable.cache_clear()
    yield monkeypatch
    hub._unreachable.cache_clear()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(("status", "reachable"), [(200, True), (404, True), (503, False)])
def test_an_answering_hub(online: pytest.MonkeyPatch, status: int, reachable: bool) -> None:
    handler = type("Handler", (_Handler,), {"status": status})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        online.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert (hub.hub_problem("model m") is None) == reachable


def test_a_closed_hub_is_named(online: pytest.MonkeyPatch) -> None:
    online.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    message = hub.hub_problem("model org/m")
    assert message is not None
    assert "cannot reach the Hugging Face hub (127.0.0.1) to get model org/m" in message
    assert "HF_ENDPOINT" in message and "local path" in message


def test_an_endpoint_that_is_no_address(online: pytest.MonkeyPatch) -> None:
    online.setenv("HF_ENDPOINT", "my-mirror")
    assert "cannot reach the Hugging Face hub (my-mirror)" in str(hub.hub_problem("model m"))


def test_a_silent_hub_ends_in_time(online: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:  # Accepts, and never answers.
        server.bind(("127.0.0.1", 0))
        server.listen()
        online.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        online.setattr(hub, "_PROBE_TIMEOUT_S", 0.3)
        start = time.monotonic()
        assert "no answer" in str(hub.hub_problem("model m"))
        assert "no answer" in str(hub.hub_problem("model n")), "remembered"
        assert time.monotonic() - start < 3


def test_offline_switch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in str(hub.hub_problem("model m"))


@needs_datasets
def test_unreachable_hub_data_set(online: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    online.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    online.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    assert "to get data set rajpurkar/squad" in one_problem("squad", None)
    assert "to get data set some-org/some-set" in one_problem("squad", "some-org/some-set")


@needs_datasets
def test_cached_hub_data_set_needs_no_hub(online: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    rows = {"train": [row(i) for i in range(5)], "validation": [row(i) for i in range(5, 7)]}
    files = {split: write_lines(tmp_path, rows[split], f"{split}.jsonl") for split in rows}
    # What loading from the hub leaves in the cache: owner___name/config/version/hash.
    target = tmp_path / "cache" / "my-org___my-set" / "default" / "0.0.0" / ("0" * 40)
    builder = datasets.load_dataset_builder("json", data_files=files, cache_dir=str(tmp_path / "x"))
    builder.dataset_name = "my-set"
    builder.info.config_name = "default"
    builder.download_and_prepare(str(target))
    online.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    online.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    assert check_source(source="squad", path="my-org/my-set", seed=0) == []
    found = contents("squad", "my-org/my-set")
    assert [len(found[split]) for split in SPLITS] == [5, 2, 2]
    assert found["test"] == found["validation"]
