"""Many ranks' rows into one writer: what is lost, how long a row takes, what rank 0 spends.

    python tests/benchmarks/diagnostics_scale.py [--ranks 256] [--rate 10] [--seconds 60]

Rank 0's end runs in this process and does nothing else; the ranks are senders as training has
them, spread over a few processes, each putting rows of the usual size.
"""

import argparse
import json
import multiprocessing as mp
import resource
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from latentwire.config import OBJECTIVES
from latentwire.diagnostics.collector import Collector, greet
from latentwire.diagnostics.ordering import Ordering
from latentwire.diagnostics.rank_stream import listening
from latentwire.diagnostics.sender import Sender
from latentwire.diagnostics.writer import Writer

SECRET = "benchmark"
NUM_PROCESSES = 4
PARTS = ("encoder", "adapter", "deep_prefix")


def row(rank: int, step: int) -> dict[str, Any]:
    """As large as a training step's row; one in fifty with gradient norms."""
    found: dict[str, Any] = {
        **{"schema": 2, "run": "benchmark", "time": "2026-01-01T00:00:00.000+00:00"},
        **{"kind": "step", "stage": "A", "step": step, "rank": rank, "decoder": "one"},
        **{"mode": "latent", "first_acc": 0.5, "skipped": False, "step_seconds": 0.1},
        **{key: 1.2345678901 + rank for key in OBJECTIVES},
        **{f"{key}_part": 0.12345678901 for key in OBJECTIVES},
        **{f"weight_{key}": 1.0 for key in OBJECTIVES},
        **{f"grad_norm/{part}": 0.123456789 for part in PARTS},
    }
    if step % 50 == 0:
        found |= {f"grad_{key}/{part}": 0.12345678 for key in OBJECTIVES for part in PARTS}
    return found


def send(ranks: range, port: int, start: float, steps: int, rate: float, results: Any) -> None:
    """The ranks of one process."""

    def sender(rank: int) -> Sender:
        def connect() -> socket.socket:
            return greet(socket.create_connection(("127.0.0.1", port), 10), SECRET, rank)

        return Sender(connect, rank=rank, capacity=4096)

    senders = {rank: sender(rank) for rank in ranks}
    for step in range(1, steps + 1):
        time.sleep(max(0.0, start + step / rate - time.time()))
        for rank, one in senders.items():
            one.put([row(rank, step)])
    for one in senders.values():
        one.close(60.0)
    results.put(sum(one.dropped for one in senders.values()))


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=256)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    steps = int(options.rate * options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder) / "rows.jsonl", options.ranks, steps, options.rate)))


def measure(path: Path, num_ranks: int, steps: int, rate: float) -> dict[str, Any]:
    """Runs ranks and rank 0; returns the figures."""
    ordering = Ordering({0: [(rank, "one") for rank in range(num_ranks)]}, close_after=30.0)
    lags: list[float] = []
    start = time.time() + 15.0

    def written(seqs: dict[int, int]) -> None:
        now = time.time()
        lags.extend(now - (start + seq / rate) for seq in seqs.values())
        collector.written(seqs)

    writer = Writer(path, ordering, written=written)
    _, listener = listening(num_ranks)
    assert listener is not None
    collector = Collector(writer, secret=SECRET, ranks=range(num_ranks), listener=listener)
    context = mp.get_context("fork")
    results = context.Queue()
    share = -(-num_ranks // NUM_PROCESSES)
    port = listener.getsockname()[1]
    processes = [
        context.Process(
            target=send,
            args=(range(first, min(first + share, num_ranks)), port, start, steps, rate, results),
        )
        for first in range(0, num_ranks, share)
    ]
    for process in processes:
        process.start()
    time.sleep(max(0.0, start - time.time()))
    before = resource.getrusage(resource.RUSAGE_SELF)
    for process in processes:
        process.join()
    seconds = time.time() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    is_complete = collector.close(10.0) and writer.close(10.0)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    every = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    places = [(found["step"], found["rank"]) for found in every if "late" not in found]
    return {
        "ranks": num_ranks,
        "sent": num_ranks * steps,
        "written": len(every),
        "dropped": sum(results.get() for _ in processes),
        "late": len(every) - len(places),
        "in_order": places == sorted(places),
        "is_complete": is_complete,
        "bytes_per_row": round(path.stat().st_size / len(every)),
        "lag_median_seconds": round(statistics.median(lags), 3),
        "lag_p99_seconds": round(statistics.quantiles(lags, n=100)[98], 3),
        "lag_max_seconds": round(max(lags), 3),
        "seconds": round(seconds, 1),
        "cpu_share_of_rank_0": round(cpu / seconds, 3),
    }


if __name__ == "__main__":
    main()
