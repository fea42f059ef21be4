"""Files and hub data sets as raw rows, or a message that says why there are none."""

import codecs
import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentwire.data.articles import SourceError
from latentwire.data.fields import MalformedError, mapping
from latentwire.data.hub import hub_problem


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows with named columns, read once."""

    where: str
    """The file or data set, as messages name it."""
    columns: list[str]
    rows: Iterator[dict[str, Any]]

    def require(self, *names: str) -> None:
        """Raises SourceError unless every one of ``names`` is a column."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise SourceError(
                [
                    f"data.path: {self.where} has no column {', '.join(missing)} (it has: "
                    f"{', '.join(self.columns)}); needed are {', '.join(names[:-1])} and "
                    f"{names[-1]}"
                ]
            )


def read_json(path: Path) -> Any:
    """The tree of a JSON file. Raises SourceError."""
    text = _read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        hint = ""
        if error.msg == "Extra data":
            hint = "; if the file has one object a line, name it .jsonl"
        raise SourceError(
            [f"data.path: {path}:{error.lineno}:{error.colno}: invalid JSON: {error.msg}{hint}"]
        ) from None
    except (ValueError, RecursionError) as error:
        raise SourceError([f"data.path: {path}: invalid JSON: {error}"]) from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of every line that is not blank, from 1. Raises SourceError."""
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line


def parse_line(line: str) -> dict[str, Any]:
    """The object that one line holds. Raises MalformedError."""
    try:
        return mapping(json.loads(line))
    except json.JSONDecodeError as error:
        raise MalformedError(f"invalid JSON at column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"invalid JSON: {error}") from None


def read_parquet(path: Path) -> Table:
    """The rows of a parquet file. Raises SourceError."""
    _read_bytes(path)
    if importlib.util.find_spec("pyarrow") is None:
        raise SourceError([_missing_library("pyarrow", f"to read {path}")])
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise SourceError([f"data.path: {path} is no readable parquet file: {error}"]) from None
    rows = (row for batch in table.to_batches() for row in batch.to_pylist())
    return Table(where=str(path), columns=list(table.column_names), rows=rows)


def read_hub(name: str, split: str, *, variant: str | None = None) -> Table:
    """The rows of one split of a hub data set. Raises SourceError.

    A copy in the local cache is used as it is, without asking the hub.

    Args:
        name: ``org/name``.
        variant: the data set's own configuration; None for its only or default one.
    """
    if importlib.util.find_spec("datasets") is None:
        raise SourceError([_missing_library("datasets", f"to get {name} from the hub")])
    if _is_prepared(name, variant):
        rows = _load_hub(name, split, variant, from_cache=True)
    else:
        problem = hub_problem(f"data set {name}")
        if problem is not None:
            raise SourceError([f"data.path: {problem}"])
        rows = _load_hub(name, split, variant, from_cache=False)
    where = f"{name} ({split})"
    return Table(where=where, columns=list(rows.column_names), rows=iter(rows))


def _load_hub(name: str, split: str, variant: str | None, *, from_cache: bool) -> Any:
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    try:
        # With the library's own switch it goes straight to its cache; without, a hub that cannot
        # be reached costs minutes of retries first.
        datasets.config.HF_HUB_OFFLINE = before or from_cache
        return datasets.load_dataset(name, variant, split=split)
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


def _is_prepared(name: str, variant: str | None) -> bool:
    """Whether the ``datasets`` library has the data set ready in its cache."""
    import datasets

    owner, _, base = name.rpartition("/")
    base = datasets.naming.camelcase_to_snakecase(base)
    folder = f"{owner}___{base}" if owner else base
    root = Path(datasets.config.HF_DATASETS_CACHE) / folder
    # config name / version / hash / dataset_info.json
    return any(root.glob(f"{variant or '*'}/*/*/dataset_info.json"))


def _missing_library(library: str, purpose: str) -> str:
    return f"data.path: {library} is needed {purpose}: pip install -e '.[data]'"


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
    """The text of a UTF-8 file, with or without its mark. Raises SourceError."""
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
