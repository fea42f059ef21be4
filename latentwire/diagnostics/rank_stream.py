"""The diagnostics stream: every rank's rows in one file, off the training path.

Each rank has a queue and a thread that sends it to rank 0 (``sender``); rank 0 takes all of them in
(``collector``), puts them in order (``ordering``) and writes them (``writer``). Training only ever
puts rows into its own queue, so no rank, network or disk can hold it up.
"""

import logging
import os
import secrets
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from latentwire.config import DiagnosticsConfig
from latentwire.diagnostics.collector import Collector, greet
from latentwire.diagnostics.frames import KIND_ORDER
from latentwire.diagnostics.ordering import Ordering
from latentwire.diagnostics.sender import Sender
from latentwire.diagnostics.stream import SCHEMA, DiagnosticsStream
from latentwire.diagnostics.writer import Writer
from latentwire.distributed.groups import Group, ProcessGroups
from latentwire.distributed.messages import broadcast_json

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_NUM_WORST = 3


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What a stream came to, as rank 0 knows it."""

    written: int
    dropped: int
    late: int
    is_complete: bool
    """Every rank has said goodbye, and everything it sent is in the file."""


@dataclass(kw_only=True)
class _RankZero:
    collector: Collector
    writer: Writer


class RankStream:
    """One rank's end of the stream; made by all ranks together, and closed by each for itself.

    Args:
        path: the file; only rank 0 opens it.
        run: the run's tag, written into every row.
        settings: how much is kept and waited for.
        after: (stage, step) that the run goes on from; rows of later steps are repeated.
    """

    def __init__(
        self,
        path: Path,
        *,
        run: str,
        groups: ProcessGroups,
        settings: DiagnosticsConfig,
        after: tuple[str, int] = ("A", 0),
    ) -> None:
        self._run = run
        self._settings = settings
        self._zero: _RankZero | None = None
        self._was_slow = False
        world = groups.world
        where = None
        if world.rank == 0:
            DiagnosticsStream(path, run=run, world=world).forget_after(*after)
            pairs = [(rank, s.decoder) for s in groups.topology.groups for rank in s.ranks]
            where = self._start(path, world, pairs)
        host, port, secret = broadcast_json(where, world)

        def connect() -> socket.socket:
            if self._zero is not None:
                connection = self._zero.collector.connect()
                connection.settimeout(_CONNECT_SECONDS)
            else:
                connection = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
            return greet(connection, secret, world.rank)

        self._sender = Sender(connect, rank=world.rank, capacity=settings.queue_rows)

    def _start(
        self, path: Path, world: Group, pairs: Sequence[tuple[int, str]]
    ) -> tuple[str, int, str]:
        """Starts rank 0's threads; returns where others connect, and the secret."""
        host, listener = listening(world.size)
        port = listener.getsockname()[1] if listener is not None else 0
        secret = secrets.token_hex(32)
        decoders = {decoder for _, decoder in pairs}
        expected = {
            KIND_ORDER["step"]: list(pairs),
            KIND_ORDER["health"]: [(0, decoder) for decoder in decoders],
        }
        ordering = Ordering(expected, close_after=self._settings.step_close_seconds)
        collector: Collector | None = None

        def written(seqs: dict[int, int]) -> None:
            # Nothing is written before the collector is there to take anything in.
            assert collector is not None
            collector.written(seqs)

        writer = Writer(path, ordering, written=written)
        collector = Collector(writer, secret=secret, ranks=world.ranks, listener=listener)
        self._zero = _RankZero(collector=collector, writer=writer)
        return host, port, secret

    def write(self, rows: Sequence[dict[str, Any]], *, kind: str = "step") -> None:
        """Takes this rank's rows of a step over; never waits."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        head = {"schema": SCHEMA, "run": self._run, "time": now, "kind": kind}
        self._sender.put([head | row for row in rows])

    def flush(self) -> bool:
        """Waits until this rank's rows are written, for a short time: before a checkpoint that a
        run may go on from. False where they are not."""
        if self.trouble():
            return False
        return self._sender.flush(min(5.0, self._settings.drain_seconds))

    def trouble(self) -> str:
        """What keeps rows from the file at present, or an empty string."""
        own = self._zero.writer.trouble if self._zero is not None else ""
        return own or self._sender.trouble

    def report(self) -> str:
        """The present trouble. A write that hangs is logged here, since its own thread cannot; the
        threads log everything else themselves."""
        is_slow = self._zero is not None and self._zero.writer.is_slow
        if is_slow and not self._was_slow:
            log.warning("diagnostics: %s; training goes on", self.trouble())
        self._was_slow = is_slow
        return self.trouble()

    def pace(self) -> dict[str, Any]:
        """Of rank 0: how long steps take the ranks, and which are the slowest. Running means of the
        rows that have come; empty elsewhere, and before there are any."""
        seconds = dict(self._zero.writer.pace) if self._zero is not None else {}
        if not seconds:
            return {}
        worst = sorted(seconds, key=lambda rank: (-seconds[rank], rank))[:_NUM_WORST]
        return {
            "step_seconds_min": min(seconds.values()),
            "step_seconds_median": statistics.median(seconds.values()),
            "step_seconds_max": max(seconds.values()),
            "slowest_ranks": [{"rank": rank, "step_seconds": seconds[rank]} for rank in worst],
        }

    def close(self, *, hurried: bool = False) -> Totals | None:
        """Drains for up to ``diagnostics.drain_seconds``; what it came to, on rank 0. No
        collective, so it may be called on any way out.

        Args:
            hurried: the job is failing, and other ranks may be gone already.
        """
        limit = self._settings.drain_seconds
        deadline = time.monotonic() + (min(2.0, limit) if hurried else limit)

        def left() -> float:
            return max(0.0, deadline - time.monotonic())

        if self._zero is None:
            self._sender.close(left())
            return None
        zero = self._zero
        is_sent = self._sender.close(left())
        is_complete = zero.collector.close(left())
        is_complete = zero.writer.close(max(0.5, left())) and is_complete and is_sent
        dropped = zero.collector.dropped
        dropped[0] = self._sender.dropped
        return Totals(
            written=zero.writer.num_written,
            dropped=sum(dropped.values()),
            late=zero.writer.num_late,
            is_complete=is_complete,
        )


def listening(world_size: int) -> tuple[str, socket.socket | None]:
    """A listener for the other ranks and the host they reach it by; none in a world of one.

    On one machine it listens there only; over several on every address, since which one the others
    come by is the network's choice: rank 0's own is the launcher's ``MASTER_ADDR``.
    """
    if world_size == 1:
        return "", None
    here = os.environ.get("LOCAL_WORLD_SIZE", str(world_size))
    if int(here) == world_size:
        return "127.0.0.1", socket.create_server(("127.0.0.1", 0), backlog=1024)
    host = os.environ.get("MASTER_ADDR") or socket.gethostname()
    if socket.has_dualstack_ipv6():
        try:
            return host, socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        except OSError:
            pass  # built with IPv6, but this machine has none
    return host, socket.create_server(("", 0), backlog=1024)
