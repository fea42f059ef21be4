"""The exchange against the same sum in one process, and misuse of groups."""

import pytest
import torch

from latentwire.config import DecoderConfig
from latentwire.distributed.exchange import exchange, scale_gradient
from latentwire.distributed.groups import ProcessGroups
from latentwire.distributed.messages import broadcast_json, gather_json
from latentwire.distributed.topology import plan
from latentwire.testing import run_distributed

DECODERS = {"a": DecoderConfig(model="a", ranks=1), "b": DecoderConfig(model="b")}
ROWS = 2


def make_groups(world_size: int) -> ProcessGroups:
    decoders = DECODERS if world_size > 1 else {"a": DECODERS["a"]}
    topology = plan(decoders, placement="separate", world_size=world_size)
    return ProcessGroups(topology, device=torch.device("cpu"), timeout=60)


def exchange_on_rank(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    groups = make_groups(world_size)
    generator = torch.Generator().manual_seed(rank)
    own = torch.randn(ROWS, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    everyone = exchange(own, groups.world)
    weights = torch.randn(everyone.shape, generator=generator, dtype=torch.float64)
    (scale_gradient(everyone, 0.5) * weights).sum().backward()
    assert own.grad is not None
    return {"own": own.detach(), "all": everyone.detach(), "weights": weights, "grad": own.grad}


@pytest.mark.parametrize("world_size", [1, 4])
def test_exchange_gathers_latents_and_sums_gradients(world_size: int) -> None:
    results = run_distributed(exchange_on_rank, world_size)
    everything = torch.cat([result["own"] for result in results])
    summed = 0.5 * sum(result["weights"] for result in results)
    for rank, result in enumerate(results):
        assert torch.equal(result["all"], everything)
        expected = summed[rank * ROWS : (rank + 1) * ROWS]
        torch.testing.assert_close(result["grad"], expected, atol=1e-12, rtol=0)


def groups_on_rank(rank: int, world_size: int) -> dict[str, object]:
    groups = make_groups(world_size)
    own = groups.hosted[0].decoder
    other = "a" if own == "b" else "b"
    with pytest.raises(ValueError, match="does not belong"):
        groups.decoder(other)
    member = groups.decoder(own)
    return {
        "own": own,
        "group_rank": member.rank,
        "gathered": gather_json({"rank": rank, "text": "ä" * rank}, groups.world),
        "in_group": gather_json(rank, member),
        "told": broadcast_json({"from": rank}, member),
    }


def test_groups_know_their_members_and_carry_messages() -> None:
    results = run_distributed(groups_on_rank, 4)
    assert [result["own"] for result in results] == ["a", "b", "b", "b"]
    assert [result["group_rank"] for result in results] == [0, 0, 1, 2]
    assert results[0]["gathered"] == [{"rank": r, "text": "ä" * r} for r in range(4)]
    assert results[1]["gathered"] is None
    assert results[1]["in_group"] == [1, 2, 3]
    assert [result["told"]["from"] for result in results] == [0, 1, 1, 1]


def fail_on_rank(rank: int, world_size: int) -> None:
    if rank == 1:
        raise RuntimeError("rank one gave up")
    torch.distributed.barrier()


def test_a_failing_rank_ends_the_test_with_its_own_words() -> None:
    with pytest.raises(AssertionError, match="rank one gave up"):
        run_distributed(fail_on_rank, 2)


def hang_on_rank(rank: int, world_size: int) -> None:
    if rank == 0:
        torch.distributed.barrier()
    else:
        import time

        time.sleep(60)


def test_a_hanging_rank_ends_the_test_with_a_stack_dump() -> None:
    with pytest.raises(AssertionError, match="hang_on_rank"):
        run_distributed(hang_on_rank, 2, timeout=20)
