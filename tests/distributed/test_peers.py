"""Ranks that are lost: how long the others wait, and what they say."""

import time

import pytest
import torch
import torch.distributed as dist

from latentwire.config import DecoderConfig
from latentwire.distributed.groups import LayoutError, ProcessGroups
from latentwire.distributed.pairwise import PairwiseAllGather, PairwiseReduceScatter
from latentwire.distributed.peers import Peers, lost_peer, meet
from latentwire.distributed.topology import plan
from latentwire.testing import run_distributed

PEERS = Peers(
    hosts=("n1", "n1", "n2", "n2"), addresses=("10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.2")
)


def make_groups(world_size: int, *, per_node: int | None = None) -> ProcessGroups:
    decoders = {name: DecoderConfig(model=name) for name in ("a", "b")}
    layout = plan(decoders, placement="separate", world_size=world_size, ranks_per_node=per_node)
    return ProcessGroups(layout, device=torch.device("cpu"), timeout=60, step_timeout=1)


def wait_for_a_late_rank(rank: int, world_size: int, kind: str, late: float) -> list[float | str]:
    groups = make_groups(world_size)
    handle = {
        "bookkeeping": groups.world.bookkeeping,
        "saving": groups.world.saving,
        "tensors": groups.world.handle,
        "default": None,
        "back": groups.world.handle,
        "gathered shards": groups.world.handle,
        "reduced shards": groups.world.handle,
    }[kind]

    def message() -> None:
        if kind == "gathered shards":
            PairwiseAllGather()(torch.ones(world_size), torch.ones(1), handle)
        elif kind == "reduced shards":
            op = dist.ReduceOp.SUM
            PairwiseReduceScatter()(torch.ones(1), torch.ones(world_size), handle, op)
        else:
            dist.all_reduce(torch.ones(1), group=handle)

    # One message first: what was connected before keeps no older limit.
    message()
    groups.expect_steps()
    if kind == "back":
        groups.expect_waits()
    start = time.monotonic()
    time.sleep(late * rank)
    try:
        message()
    except RuntimeError as error:
        words = lost_peer(error, None, timeout=groups.timeout, key="the.key")
        return [words, time.monotonic() - start]
    return ["came", time.monotonic() - start]


@pytest.mark.parametrize(
    "kind", ["bookkeeping", "tensors", "default", "gathered shards", "reduced shards"]
)
def test_a_rank_that_does_not_answer_is_given_up_after_the_step_timeout(kind: str) -> None:
    words, seconds = run_distributed(wait_for_a_late_rank, 2, kind, 10.0)[0]
    assert words.startswith("another rank did not answer for 1 s (the.key)")
    # By the short limit: neither the rank's coming nor the long one has ended the wait.
    assert 0.9 < seconds < 8


@pytest.mark.parametrize("kind", ["saving", "back"])
def test_where_ranks_load_or_write_they_have_the_long_timeout(kind: str) -> None:
    words, seconds = run_distributed(wait_for_a_late_rank, 2, kind, 3.0)[0]
    assert words == "came" and seconds > 1.5, "longer than a step may take"


def disagree(rank: int, world_size: int) -> str:
    try:
        make_groups(world_size, per_node=rank + 1)
    except LayoutError as error:
        return str(error)
    return ""


def test_ranks_that_do_not_agree_on_the_layout_say_so_before_any_group() -> None:
    for text in run_distributed(disagree, 2):
        assert "different numbers of processes" in text


def introduce(rank: int, world_size: int) -> list[int]:
    peers = meet(make_groups(world_size).world)
    return [len(peers.hosts), len(peers.addresses), len(set(peers.hosts))]


def test_ranks_tell_each_other_where_they_are() -> None:
    assert run_distributed(introduce, 2) == [[2, 2, 1]] * 2


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "[a.cc:525] Read error [10.0.0.2]:3041: Connection reset by peer",
            "node n2 (10.0.0.2, ranks 2, 3) is gone: its connection was closed",
        ),
        (
            "[a.cc:538] Connection closed by peer [::ffff:10.0.0.1]:54",
            "node n1 (10.0.0.1, ranks 0, 1) is gone",
        ),
        ("Connection closed by peer [10.0.0.9]:54", "another rank (10.0.0.9) is gone"),
        (
            "NCCL error: remote process exited or there was a network error",
            "another rank is gone",
        ),
        (
            "Timed out waiting 8000ms for recv operation to complete",
            "another rank did not answer for 8 s (k)",
        ),
        ("Expected all tensors to be on the same device", ""),
    ],
)
def test_the_words_name_who_is_known_to_be_lost(message: str, words: str) -> None:
    found = lost_peer(RuntimeError(message), PEERS, timeout=8, key="k")
    assert found.startswith(words) and bool(found) == bool(words)


def test_on_one_machine_no_rank_is_named_by_its_address() -> None:
    one = Peers(hosts=("n1", "n1"), addresses=("127.0.0.1", "127.0.0.1"))
    error = RuntimeError("Connection closed by peer [127.0.0.1]:5")
    assert lost_peer(error, one, timeout=1, key="k").startswith("another rank (127.0.0.1) is gone")
