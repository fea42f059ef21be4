"""The way of a row from its rank into the file: in order, once, and holding nobody up."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from latentwire.diagnostics import writer as writer_module
from latentwire.diagnostics.collector import Collector, greet
from latentwire.diagnostics.frames import Frame, decoded
from latentwire.diagnostics.ordering import Ordering
from latentwire.diagnostics.rank_stream import listening
from latentwire.diagnostics.sender import WINDOW, Sender
from latentwire.diagnostics.writer import Writer

SECRET = "of the job"
DECODER = {0: "a", 1: "b", 2: "b"}
"""By rank."""


def row(step: int, rank: int, *, norms: bool = False, **more: Any) -> dict[str, Any]:
    found = {"kind": "step", "stage": "A", "step": step, "rank": rank, "decoder": DECODER[rank]}
    return found | ({"grad_tf": 1.0} if norms else {}) | more


def until(condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
    """Waits for what must come; how fast it comes is not tested."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


class Job:
    """Rank 0's end, and senders of as many ranks as are asked for."""

    def __init__(self, path: Path, *, ranks: int = 3, close_after: float = 60.0) -> None:
        self.path = path
        expected = {0: [(rank, DECODER[rank]) for rank in range(ranks)], 1: [(0, "a"), (0, "b")]}
        ordering = Ordering(expected, close_after=close_after)
        self.writer = Writer(path, ordering, written=lambda seqs: self.collector.written(seqs))
        _, listener = listening(ranks)
        assert listener is not None
        self.port = listener.getsockname()[1]
        self.collector = Collector(
            self.writer, secret=SECRET, ranks=range(ranks), listener=listener
        )
        self.connections: dict[int, list[socket.socket]] = {}
        self.senders: dict[int, Sender] = {}

    def sender(self, rank: int, *, capacity: int = 1000) -> Sender:
        def connect() -> socket.socket:
            connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
            self.connections.setdefault(rank, []).append(connection)
            return greet(connection, SECRET, rank)

        self.senders[rank] = Sender(connect, rank=rank, capacity=capacity)
        return self.senders[rank]

    def close(self) -> bool:
        for sender in self.senders.values():
            sender.close(0.1)
        is_complete = self.collector.close(5.0)
        return self.writer.close(5.0) and is_complete

    def rows(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def make(**options: Any) -> Job:
        jobs.append(Job(tmp_path / "diagnostics.jsonl", **options))
        return jobs[-1]

    yield make
    for job in jobs:
        job.close()


def places(rows: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(r["step"], r["rank"]) for r in rows]


def test_rows_of_all_ranks_stand_in_order(start: Callable[..., Job]) -> None:
    job = start()
    senders = [job.sender(rank) for rank in range(3)]
    for rank in (2, 0, 1):
        for step in range(1, 6):
            senders[rank].put([row(step, rank, value=float("nan") if step == 3 else 0.5)])
    assert all(sender.flush(20) for sender in senders)
    rows = job.rows()
    assert places(rows) == [(step, rank) for step in range(1, 6) for rank in range(3)]
    assert all(r["dropped"] == 0 and "late" not in r for r in rows)
    assert [r["value"] for r in rows if r["step"] == 3] == [None] * 3
    assert all(r["nonfinite"] == ["value"] for r in rows if r["step"] == 3)
    for sender in senders:
        assert sender.close(5.0)
    assert job.close()


def test_many_rows_all_come(start: Callable[..., Job]) -> None:
    job = start(ranks=2)
    senders = [job.sender(rank, capacity=10_000) for rank in range(2)]
    number = 3 * WINDOW
    for step in range(1, number + 1):
        for rank, sender in enumerate(senders):
            sender.put([row(step, rank)])
    assert all(sender.flush(60) for sender in senders)
    rows = job.rows()
    assert places(rows) == [(step, rank) for step in range(1, number + 1) for rank in range(2)]
    assert sum(sender.dropped for sender in senders) == 0


def test_health_rows_stand_behind_their_step(start: Callable[..., Job]) -> None:
    job = start(ranks=2)
    first, second = job.sender(0), job.sender(1)
    first.put([row(1, 0)])
    first.put([row(1, 0) | {"kind": "health", "decoder": name} for name in ("b", "a")])
    first.put([row(2, 0)])
    second.put([row(1, 1), row(2, 1)])
    assert first.flush(20) and second.flush(20)
    kinds = [(r["step"], r["kind"], r["decoder"]) for r in job.rows()]
    of_health = [(1, "health", "a"), (1, "health", "b")]
    assert kinds == [
        (1, "step", "a"),
        (1, "step", "b"),
        *of_health,
        (2, "step", "a"),
        (2, "step", "b"),
    ]


def test_a_slow_rank_is_late_and_holds_nobody_up(start: Callable[..., Job]) -> None:
    job = start(ranks=2, close_after=0.3)
    first, second = job.sender(0), job.sender(1)
    first.put([row(step, 0) for step in (1, 2)])
    assert first.flush(20), "the steps close without rank 1"
    second.put([row(step, 1) for step in (1, 2)])
    assert second.flush(20)
    rows = job.rows()
    assert places(rows) == [(1, 0), (2, 0), (1, 1), (2, 1)]
    assert [r.get("late", False) for r in rows] == [False, False, True, True]


def test_a_dead_rank_is_not_waited_for(start: Callable[..., Job]) -> None:
    job = start(ranks=2, close_after=3600)
    first, second = job.sender(0), job.sender(1)
    first.put([row(1, 0)])
    second.put([row(1, 1)])
    assert first.flush(20) and second.flush(20)
    second.close(1.0)
    first.put([row(2, 0)])
    assert first.flush(20)
    assert places(job.rows()) == [(1, 0), (1, 1), (2, 0)]


def test_a_rank_that_never_came_closes_by_time(start: Callable[..., Job]) -> None:
    job = start(ranks=3, close_after=0.2)
    first = job.sender(0)
    first.put([row(1, 0)])
    assert first.flush(20)
    assert places(job.rows()) == [(1, 0)]


def test_a_broken_connection_loses_and_repeats_nothing(start: Callable[..., Job]) -> None:
    job = start(ranks=2)
    first, second = job.sender(0), job.sender(1)
    for step in range(1, 60):
        first.put([row(step, 0)])
        second.put([row(step, 1)])
        if step % 20 == 0:
            until(lambda: bool(job.connections.get(1)))
            with contextlib.suppress(OSError):  # it may be broken still
                job.connections[1][-1].shutdown(socket.SHUT_RDWR)
    assert first.flush(30) and second.flush(30)
    assert len(job.connections[1]) > 1, "it was broken"
    rows = job.rows()
    assert sorted(places(rows)) == [(step, rank) for step in range(1, 60) for rank in range(2)]


def test_a_full_queue_drops_the_oldest_without_norms() -> None:
    def connect() -> socket.socket:
        raise OSError("nobody there")

    sender = Sender(connect, rank=0, capacity=4)
    for step in range(1, 9):
        sender.put([row(step, 0, norms=step % 3 == 0)])
    kept = [waiting.row["step"] for waiting in sender._queue]
    assert kept == [3, 6, 7, 8]
    assert sender.dropped == 4
    for step in range(9, 12):
        sender.put([row(step, 0, norms=True)])
    kept = [waiting.row["step"] for waiting in sender._queue]
    assert kept == [6, 9, 10, 11], "with norms alone, the oldest goes"
    until(lambda: "nobody there" in sender.trouble)
    assert not sender.close(0.1)
    assert sender.dropped == 11, "what never got through counts too"


def test_dropped_rows_are_counted_in_those_that_come(start: Callable[..., Job]) -> None:
    job = start(ranks=2, close_after=3600)
    gate = threading.Event()

    def connect() -> socket.socket:
        assert gate.wait(30)
        return greet(socket.create_connection(("127.0.0.1", job.port), timeout=10), SECRET, 0)

    sender = job.senders[0] = Sender(connect, rank=0, capacity=3)
    other = job.sender(1)
    for step in range(1, 11):
        sender.put([row(step, 0)])
        other.put([row(step, 1)])
    gate.set()
    assert sender.flush(20) and other.flush(20)
    own = [r for r in job.rows() if r["rank"] == 0]
    assert [r["step"] for r in own] == [8, 9, 10]
    assert [r["dropped"] for r in own] == [7, 7, 7]
    assert len(own) + own[-1]["dropped"] == 10
    assert [r["step"] for r in job.rows() if r["rank"] == 1] == list(range(1, 11))


def test_a_full_disk_is_reported_and_holds_nobody_up(
    start: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start(ranks=2)
    first, second = job.sender(0), job.sender(1)
    first.put([row(1, 0)])
    second.put([row(1, 1)])
    assert first.flush(20) and second.flush(20)
    real, is_full = writer_module.os.write, [True]

    def write(file: int, data: bytes) -> int:
        if is_full[0]:
            # Half of it fits.
            if len(data) > 40:
                return real(file, data[:40])
            raise OSError(28, "No space left on device")
        return real(file, data)

    monkeypatch.setattr(writer_module.os, "write", write)
    # What a try leaves of a row is cut off again: none is made while the file is looked at.
    monkeypatch.setattr(writer_module, "_RETRY", 5.0)
    for step in (2, 3):
        first.put([row(step, 0)])
        second.put([row(step, 1)])
    until(lambda: "No space left" in job.writer.trouble)
    assert not first.flush(0.1)
    assert [json.loads(line) for line in job.path.read_text().splitlines()] == job.rows()
    is_full[0] = False
    assert first.flush(20) and second.flush(20)
    assert job.writer.trouble == ""
    assert places(job.rows()) == [(step, rank) for step in (1, 2, 3) for rank in (0, 1)]


def test_a_slow_disk_is_reported_and_holds_nobody_up(
    start: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start(ranks=2)
    gate = threading.Event()
    real = writer_module.os.write

    def write(file: int, data: bytes) -> int:
        assert gate.wait(60)
        return real(file, data)

    monkeypatch.setattr(writer_module.os, "write", write)
    monkeypatch.setattr(writer_module, "_SLOW", 0.05)
    first, second = job.sender(0, capacity=WINDOW + 10), job.sender(1)
    second.put([row(1, 1)])
    for step in range(1, WINDOW + 100):
        first.put([row(step, 0)])
    until(lambda: "s so far" in job.writer.trouble)
    assert len(first._queue) == WINDOW + 10
    gate.set()
    second.close(10)
    assert first.flush(30)
    own = [r for r in job.rows() if r["rank"] == 0]
    assert len(own) + first.dropped == WINDOW + 99


def test_strangers_are_sent_away(start: Callable[..., Job]) -> None:
    job = start(ranks=2, close_after=0.1)

    def refused(answer: Callable[[str], bytes]) -> bool:
        with socket.create_connection(("127.0.0.1", job.port), timeout=10) as connection:
            nonce = connection.recv(256).decode().strip()
            connection.sendall(answer(nonce))
            return connection.recv(256) == b""

    frame = Frame(seq=1, dropped=0, place=(0, 1, 0), rank=1, decoder="b", row=b'{"x": 1}')
    assert refused(lambda nonce: b"hello 1 0123\n")
    assert refused(lambda nonce: frame.encoded())
    assert refused(lambda nonce: b"x" * 4096)
    with socket.create_connection(("127.0.0.1", job.port), timeout=10) as connection:
        greet(connection, "another secret", 1)
        assert connection.recv(256) == b""
    with socket.create_connection(("127.0.0.1", job.port), timeout=10) as connection:
        greet(connection, SECRET, 7)
        assert connection.recv(256) == b"", "no such rank"
    with socket.create_connection(("127.0.0.1", job.port), timeout=10) as connection:
        greet(connection, SECRET, 0)
        assert connection.recv(256) == b"0\n", "the job's own"
        connection.sendall(frame.encoded())
        assert connection.recv(256) == b"", "a rank speaks for itself only"
    assert job.rows() == []


@pytest.mark.parametrize(("local", "host"), [("2", "127.0.0.1"), ("1", "node-a")])
def test_other_machines_are_listened_to_where_there_are_any(
    local: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    monkeypatch.setenv("MASTER_ADDR", "node-a")
    found, listener = listening(2)
    assert found == host and listener is not None
    with listener:
        own, port = listener.getsockname()[:2]
        assert own in (("127.0.0.1",) if local == "2" else ("::", "0.0.0.0"))
        with socket.create_connection(("127.0.0.1", port), timeout=10):
            pass


def test_a_frame_survives_its_way() -> None:
    frame = Frame(
        seq=7, dropped=2, place=(1, 30, 0), rank=3, decoder="b", seconds=0.25, row=b'{"x": "\\t"}'
    )
    assert decoded(frame.encoded()[:-1]) == frame
    assert json.loads(frame.line(late=True)) == {"x": "\t", "dropped": 2, "late": True}
    for bad in (b"", b"bye", b"1\t2\t3", frame.encoded()[:-4]):
        with pytest.raises(ValueError):
            decoded(bad)


def test_a_silent_rank_is_waited_for_once() -> None:
    ordering = Ordering({0: [(0, "a"), (1, "b")]}, close_after=10)
    for step in (1, 2):
        ordering.add(frame_of(step, 0), float(step))
    assert ordering.ready(5.0) == []
    assert ordering.next_closing() == 11.0
    found = [(f.place[1], f.rank, late) for f, late in ordering.ready(11.0)]
    assert found == [(1, 0, False), (2, 0, False)]
    ordering.add(frame_of(2, 1), 12.0)
    assert [(f.place[1], f.rank, late) for f, late in ordering.ready(12.0)] == [(2, 1, True)]
    ordering.add(frame_of(3, 0), 13.0)
    assert ordering.ready(13.0) == [], "it is back"
    ordering.add(frame_of(3, 1), 14.0)
    assert [(f.place[1], f.rank, late) for f, late in ordering.ready(14.0)] == [
        (3, 0, False),
        (3, 1, False),
    ]
    ordering.add(frame_of(4, 1), 15.0)
    assert [f.place[1] for f, _ in ordering.ready(15.0, closing=True)] == [4]


def frame_of(step: int, rank: int) -> Frame:
    return Frame(
        seq=step, dropped=0, place=(0, step, 0), rank=rank, decoder=DECODER[rank], row=b'{"x": 1}'
    )
