"""Small data files, and how a source's contents and complaints are looked at."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from latentwire.data.example import Example
from latentwire.data.hotpot import Setting
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


def contents(
    source: str,
    path: str | None,
    *,
    seed: int = 0,
    setting: Setting | None = None,
    **files: str,
) -> dict[Split, list[Example]]:
    """Every example by split; the counts are checked on the way."""
    found = {}
    for split in SPLITS:
        opened = open_source(
            source=source, path=path, setting=setting, split=split, seed=seed, **files
        )
        documents = [opened.examples(index) for index in range(opened.num_documents)]
        assert opened.counts() == [len(examples) for examples in documents]
        assert all(len({e.context for e in examples}) == 1 for examples in documents)
        found[split] = [example for examples in documents for example in examples]
    return found


def contexts(found: dict[Split, list[Example]]) -> dict[Split, set[str]]:
    return {split: {example.context for example in found[split]} for split in SPLITS}


def problems(
    source: str, path: str | None, *, setting: Setting | None = None, **files: str
) -> list[str]:
    return check_source(source=source, path=path, setting=setting, seed=0, **files)


def one_problem(source: str, path: str | None, *, setting: Setting | None = None) -> str:
    """The single message, also what ``open_source`` raises."""
    found = problems(source, path, setting=setting)
    assert len(found) == 1, found
    assert found[0].startswith(("data.path: ", "data.source: "))
    with pytest.raises(ValueError) as caught:
        open_source(source=source, path=path, setting=setting, split="train", seed=0)
    assert str(caught.value) == found[0]
    return found[0]
