"""The diagnostics file: valid JSON always, and what a resumed run forgets."""

import dataclasses
import json
import resource
import signal
from pathlib import Path
from typing import Any, cast

import pytest

from latentwire.diagnostics.stream import DiagnosticsStream, encodable
from latentwire.distributed.groups import Group


@dataclasses.dataclass
class Member:
    """As much of a group as the file needs: which rank this is."""

    rank: int = 0


def stream(path: Path, rank: int = 0) -> DiagnosticsStream:
    return DiagnosticsStream(path, run="test", world=cast(Group, Member(rank)))


def row(stage: str, step: int, **more: Any) -> str:
    return json.dumps({"stage": stage, "step": step, **more})


def test_finite_row_stays_as_it_is() -> None:
    finite = {"tf": 1.5, "step": 3, "name": "nan", "none": None, "flag": True, "zero": 0.0}
    assert encodable(finite) == finite


def test_numbers_that_are_not_finite_become_null_and_are_listed() -> None:
    found = encodable({"tf": float("nan"), "step": 3, "kd": float("inf"), "low": -float("inf")})
    assert found == {
        "tf": None,
        "step": 3,
        "kd": None,
        "low": None,
        "nonfinite": ["tf", "kd", "low"],
    }
    json.dumps(found, allow_nan=False)


def test_encodable_leaves_the_callers_row_alone() -> None:
    given = {"tf": float("inf")}
    encodable(given)
    assert given == {"tf": float("inf")}


@pytest.mark.parametrize(
    ("stage", "step", "kept"),
    [
        ("A", 0, []),
        ("A", 20, [("A", 10), ("A", 20), ("A", 20)]),
        ("A", 99, [("A", 10), ("A", 20), ("A", 20), ("A", 30)]),
        ("B", 0, [("A", 10), ("A", 20), ("A", 20), ("A", 30)]),
        ("B", 5, [("A", 10), ("A", 20), ("A", 20), ("A", 30), ("B", 5), ("B", 5)]),
    ],
)
def test_rows_that_a_resumed_run_repeats_are_dropped(
    tmp_path: Path, stage: str, step: int, kept: list[tuple[str, int]]
) -> None:
    path = tmp_path / "diagnostics.jsonl"
    every = [("A", 10), ("A", 20), ("A", 20), ("A", 30), ("B", 5), ("B", 5), ("B", 15)]
    lines = [row(*place, rank=index) for index, place in enumerate(every)]
    path.write_text("\n".join(lines) + "\n")
    stream(path).forget_after(stage, step)
    assert path.read_text() == "".join(line + "\n" for line in lines[: len(kept)])
    assert [p.name for p in tmp_path.iterdir()] == ["diagnostics.jsonl"], "nothing left beside it"


@pytest.mark.parametrize(
    "torn",
    [
        '{"stage": "A", "st',
        "{",
        '{"stage": "A"}',
        "3",
        "[1, 2]",
        '"text"',
        "null",
        '{"stage": "X", "step": 1}',
        "\0\0\0\0",
    ],
)
def test_torn_line_is_dropped_and_the_file_can_be_appended_to(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "diagnostics.jsonl"
    path.write_text(row("A", 1) + "\n" + torn)
    stream(path).forget_after("A", 5)
    assert path.read_text() == row("A", 1) + "\n"


def test_last_row_without_its_line_end_is_kept_and_closed(tmp_path: Path) -> None:
    path = tmp_path / "diagnostics.jsonl"
    path.write_text(row("A", 1) + "\n" + row("A", 2))
    stream(path).forget_after("A", 2)
    assert path.read_text() == row("A", 1) + "\n" + row("A", 2) + "\n"


def test_other_ranks_leave_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "diagnostics.jsonl"
    path.write_text(row("B", 9) + "\n")
    stream(path, rank=1).forget_after("A", 1)
    assert path.read_text() == row("B", 9) + "\n"


def test_new_run_has_no_file_to_forget(tmp_path: Path) -> None:
    stream(tmp_path / "diagnostics.jsonl").forget_after("A", 0)
    assert list(tmp_path.iterdir()) == []


def test_rows_of_other_runs_stay(tmp_path: Path) -> None:
    path = tmp_path / "shared.jsonl"
    own, other = row("A", 3, run="test"), row("B", 9, run="other")
    path.write_text(f"{own}\n{other}\n")
    stream(path).forget_after("A", 2)
    assert path.read_text() == f"{other}\n"


def test_a_full_disk_leaves_no_half_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that fit again later stand on lines of their own."""
    monkeypatch.setattr("latentwire.diagnostics.stream.gather_json", lambda rows, world: [rows])
    path = tmp_path / "rows.jsonl"
    rows = stream(path)
    rows.write([{"step": 1}])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, before[1]))
        with pytest.raises(OSError, match="too large"):
            rows.write([{"step": 2}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    rows.write([{"step": 3}])
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3]


def test_what_is_beside_the_file_stays_and_a_link_to_it_too(tmp_path: Path) -> None:
    real, link = tmp_path / "real.jsonl", tmp_path / "rows.jsonl"
    real.write_text(row("A", 1) + "\n" + row("A", 2) + "\n" + "[" * 100_000 + "\n")
    link.symlink_to(real)
    for name in ("rows.tmp", "real.tmp"):
        (tmp_path / name).write_text("mine")
    stream(link).forget_after("A", 1)
    assert link.is_symlink() and real.read_text() == row("A", 1) + "\n"
    names = ["real.jsonl", "real.tmp", "rows.jsonl", "rows.tmp"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "rows.tmp").read_text() == "mine"
