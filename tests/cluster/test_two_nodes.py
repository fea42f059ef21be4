"""Runs over two nodes whose network fails: torchrun on each, as a user starts it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import two_nodes
from conftest import small_overrides
from processes import kill, ranks_of
from two_nodes import NODES, TwoNodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 30


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with two_nodes.two_nodes() as found:
        yield found


@pytest.fixture(autouse=True)
def _leave_nodes_clean(nodes: TwoNodes) -> Iterator[None]:
    yield
    for node in NODES:
        nodes.set_link(node, "up")
    nodes.close()


def overrides(pair: Path, folder: Path, *more: str) -> list[str]:
    return small_overrides(
        pair,
        folder,
        f"train.stage_a.steps={STEPS}",
        "train.stage_b.steps=0",
        "checkpoint.interval=5",
        "diagnostics.grad_diag_interval=0",
        *more,
    )


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "runs/test/status.json").read_text())
    return found


def metrics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "runs/test/metrics.json").read_text())
    return found


def finish(nodes: TwoNodes) -> None:
    for node in NODES:
        assert nodes.wait(node, seconds=240) == 0, nodes.text(node)[-3000:]


@pytest.fixture(scope="module")
def whole(nodes: TwoNodes, pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    nodes.start("train", *overrides(pair, folder))
    finish(nodes)
    nodes.logs.rename(folder / "logs")
    return folder


def test_two_node_run_is_whole(nodes: TwoNodes, whole: Path) -> None:
    assert status(whole)["state"] == "finished"
    lines = (whole / "runs/test/diagnostics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["step"], row["rank"]) for row in rows if row["kind"] == "step"] == [
        (step, rank) for step in range(1, STEPS + 1) for rank in (0, 1)
    ]
    log = (whole / "runs/test/pipeline.log").read_text()
    assert "llama  1 ranks: 0 (node 0)" in log and "qwen   1 ranks: 1 (node 1)" in log
    # Every rank's own output, on each node.
    logs = sorted((whole / "logs").glob("*/attempt_0/0/stderr.log"))
    assert len(logs) == 2
    assert sum("stage A: steps 1 to" in path.read_text() for path in logs) == 1


def test_two_node_a_dead_node_ends_the_other_and_the_same_command_goes_on(
    nodes: TwoNodes, whole: Path, pair: Path, tmp_path: Path
) -> None:
    """Once with its connections closed, as by a crash; once in silence, as by a loss of power."""
    given = overrides(pair, tmp_path, "distributed.step_timeout=8")
    run = tmp_path / "runs/test"

    nodes.start("train", *given)
    nodes.wait_for_step(run, 8)
    nodes.kill("node2")
    since = time.monotonic()
    assert nodes.wait("node1", seconds=150) == 1
    print(f"closed: {time.monotonic() - since:.1f} s")
    reason = status(tmp_path)["reason"]
    assert "is gone: its connection was closed" in reason
    assert "node node2 (10.77.0.12, rank " in reason or "node node1 (10.77.0.11, rank " in reason
    assert "the same command goes on from the last checkpoint" in nodes.text("node1")
    assert "Traceback" not in nodes.text("node1").split("ended: ")[0]
    (left,) = nodes.logs.glob("*/attempt_0/*/error.json")
    assert "connection was closed" in json.loads(left.read_text())["message"]["message"]

    nodes.start("train", *given)
    nodes.wait_for_step(run, 16)
    nodes.set_link("node2", "down")
    nodes.kill("node2")
    since = time.monotonic()
    assert nodes.wait("node1", seconds=150) == 1
    print(f"silent: {time.monotonic() - since:.1f} s")
    reason = status(tmp_path)["reason"]
    assert "another rank did not answer for 8 s (distributed.step_timeout)" in reason
    nodes.set_link("node2", "up")

    nodes.start("train", *given)
    finish(nodes)
    assert "resumed from" in nodes.text("node1") + nodes.text("node2")
    assert metrics(tmp_path)["decoders"] == metrics(whole)["decoders"]


def test_two_node_a_killed_rank_is_started_again_by_torchrun(
    nodes: TwoNodes, whole: Path, pair: Path, tmp_path: Path
) -> None:
    nodes.start("train", *overrides(pair, tmp_path), MAX_RESTARTS="1")
    # Step 10's save has waited for that of step 5, which is what there is to go on from.
    nodes.wait_for_step(tmp_path / "runs/test", 11)
    (rank,) = worker(nodes, "node2")
    kill(rank)
    finish(nodes)
    texts = nodes.text("node1") + nodes.text("node2")
    assert texts.count("resumed from") == 1
    assert metrics(tmp_path)["decoders"] == metrics(whole)["decoders"]
    # The other node joins the new round without counting an attempt of its own.
    assert list(nodes.logs.glob("*/attempt_1"))


def worker(nodes: TwoNodes, node: str) -> list[int]:
    """The ranks' processes on a node."""
    found = [nodes.running[node].pid]
    workers: list[int] = []
    while found:
        parent = found.pop()
        workers += ranks_of(parent).values()
        children = Path(f"/proc/{parent}/task/{parent}/children")
        found += [int(word) for word in children.read_text().split()] if children.exists() else []
    return workers


def test_two_node_a_link_that_is_down_for_20_seconds_heals(
    nodes: TwoNodes, whole: Path, pair: Path, tmp_path: Path
) -> None:
    nodes.start("train", *overrides(pair, tmp_path, "distributed.step_timeout=90"))
    nodes.wait_for_step(tmp_path / "runs/test", 8)
    nodes.set_link("node2", "down")
    time.sleep(20)
    assert all(child.poll() is None for child in nodes.running.values())
    nodes.set_link("node2", "up")
    finish(nodes)
    assert "resumed from" not in nodes.text("node1") + nodes.text("node2")
    assert metrics(tmp_path)["decoders"] == metrics(whole)["decoders"]
