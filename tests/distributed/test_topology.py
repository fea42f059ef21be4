"""The layout as pure data: who holds what, for any world, and messages for what cannot be."""

import random
import re
from typing import Any

import pytest

from latentwire.config import DecoderConfig
from latentwire.distributed.topology import Topology, batch_problems, eval_batch_size, plan


def decoders(**changes: dict[str, Any]) -> dict[str, DecoderConfig]:
    return {name: DecoderConfig(model=name, **values) for name, values in changes.items()}


def ranks(topology: Topology) -> dict[str, tuple[int, ...]]:
    return {group.decoder: group.ranks for group in topology.groups}


def sizes(topology: Topology) -> list[int]:
    return [group.size for group in topology.groups]


# --- placement


def test_separate_gives_leftovers_in_configuration_order() -> None:
    layout = plan(decoders(a={}, b={}), placement="separate", world_size=3)
    assert ranks(layout) == {"a": (0, 1), "b": (2,)}
    assert layout.placement == "separate"
    layout = plan(decoders(a={}, b={}, c={}), placement="separate", world_size=8)
    assert sizes(layout) == [3, 3, 2]


def test_colocated_puts_every_decoder_everywhere() -> None:
    layout = plan(decoders(a={}, b={"ranks": 3}), placement="colocated", world_size=3)
    assert ranks(layout) == {"a": (0, 1, 2), "b": (0, 1, 2)}
    assert all(layout.hosted_by(rank) == layout.groups for rank in range(3))


@pytest.mark.parametrize(
    ("world_size", "expected"),
    [(1, "colocated"), (2, "colocated"), (3, "separate"), (9, "separate")],
)
def test_auto_separates_with_a_rank_per_decoder(world_size: int, expected: str) -> None:
    layout = plan(decoders(a={}, b={}, c={}), placement="auto", world_size=world_size)
    assert layout.placement == expected
    assert layout == plan(decoders(a={}, b={}, c={}), placement=expected, world_size=world_size)


def test_world_of_one_holds_one_decoder_either_way() -> None:
    for placement in ("separate", "colocated", "auto"):
        assert ranks(plan(decoders(a={}), placement=placement, world_size=1)) == {"a": (0,)}


def test_ranks_are_kept_and_the_rest_is_shared_out() -> None:
    layout = plan(
        decoders(a={}, b={"ranks": 3}, c={"share": 3.0}), placement="separate", world_size=11
    )
    assert ranks(layout) == {"a": (0, 1), "b": (2, 3, 4), "c": tuple(range(5, 11))}
    layout = plan(decoders(a={"ranks": 1}, b={"ranks": 3}), placement="separate", world_size=4)
    assert ranks(layout) == {"a": (0,), "b": (1, 2, 3)}


def test_smallest_share_still_gets_a_rank() -> None:
    shares = decoders(a={"share": 0.001}, b={"share": 100.0}, c={"share": 1.0})
    assert sizes(plan(shares, placement="separate", world_size=3)) == [1, 1, 1]
    assert sizes(plan(shares, placement="separate", world_size=10)) == [1, 8, 1]


@pytest.mark.parametrize(
    ("shares", "world_size", "expected"),
    [
        ((1.0, 3.0), 4, [1, 3]),
        ((2.0, 1.0), 9, [6, 3]),
        ((0.5, 0.25, 0.25), 8, [4, 2, 2]),
        # 4 * 0.3 / (0.1 + 0.3) is 2.9999999999999996 in floating point.
        ((0.1, 0.3), 4, [1, 3]),
        ((0.1, 0.7), 24, [3, 21]),
    ],
)
def test_shares_that_come_out_even_are_met(
    shares: tuple[float, ...], world_size: int, expected: list[int]
) -> None:
    given = {f"d{i}": DecoderConfig(model="m", share=share) for i, share in enumerate(shares)}
    assert sizes(plan(given, placement="separate", world_size=world_size)) == expected


def random_layout(rng: random.Random) -> tuple[dict[str, DecoderConfig], int]:
    """Decoders that fit: some name their ranks, the others have shares, and at least a rank."""
    given, world_size = {}, 0
    fixed = [rng.random() < 0.4 for _ in range(rng.randint(1, 6))]
    for index, named in enumerate(fixed):
        size = rng.randint(1, 6)
        world_size += size
        given[f"d{index}"] = DecoderConfig(
            model="m", ranks=size if named else None, share=rng.choice([0.01, 0.3, 1.0, 2.5, 40.0])
        )
    return given, world_size


def test_groups_are_disjoint_and_cover_any_world() -> None:
    rng = random.Random(0)
    for _ in range(1000):
        given, world_size = random_layout(rng)
        layout = plan(given, placement="separate", world_size=world_size)
        # In order and without a gap: disjoint and covering.
        assert [r for group in layout.groups for r in group.ranks] == list(range(world_size))
        assert [group.decoder for group in layout.groups] == list(given)
        assert min(sizes(layout)) >= 1
        for group in layout.groups:
            assert given[group.decoder].ranks in (None, group.size)
            assert layout.group(group.decoder) == group
        for rank in range(world_size):
            (hosted,) = layout.hosted_by(rank)
            assert rank in hosted.ranks


def test_sizes_are_within_one_of_the_share() -> None:
    rng = random.Random(1)
    for _ in range(500):
        shares = [rng.uniform(1.0, 4.0) for _ in range(rng.randint(1, 5))]
        world_size = rng.randint(40, 90)
        given = {f"d{i}": DecoderConfig(model="m", share=share) for i, share in enumerate(shares)}
        layout = plan(given, placement="separate", world_size=world_size)
        for size, share in zip(sizes(layout), shares, strict=True):
            assert abs(size - world_size * share / sum(shares)) < 1 + 1e-9


# --- what cannot be


@pytest.mark.parametrize(
    ("given", "placement", "world_size", "message"),
    [
        (decoders(a={}, b={}), "separate", 1, r"placement: .*start 2 processes"),
        (decoders(a={"ranks": 2}, b={}), "colocated", 4, r"decoders\.a\.ranks: 2.* all 4 ranks"),
        (decoders(a={"ranks": 4}, b={}), "separate", 4, r"decoders.*ranks.*leaves 0 for 1 other"),
        (decoders(a={"ranks": 9}, b={}), "auto", 4, r"decoders.*ranks.* take 9 of 4"),
        (decoders(a={"ranks": 1}, b={"ranks": 2}), "separate", 4, r"ranks.* take 3 of 4"),
        (decoders(a={"ranks": 3}, b={"ranks": 2}), "separate", 4, r"ranks.* take 5 of 4"),
        (decoders(a={"ranks": 3}, b={}, c={}), "separate", 4, r"ranks.*leaves 1 for 2 other"),
    ],
)
def test_impossible_layout_names_the_key(
    given: dict[str, DecoderConfig], placement: str, world_size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan(given, placement=placement, world_size=world_size)


# --- batches


def test_batch_that_every_group_can_split_has_no_problem() -> None:
    layout = plan(decoders(a={"ranks": 1}, b={"ranks": 3}), placement="separate", world_size=4)
    assert batch_problems(layout, batch_size=24, accumulation=1) == []
    assert batch_problems(layout, batch_size=24, accumulation=2) == []


def test_batch_that_a_group_cannot_split_names_it_and_the_nearest() -> None:
    layout = plan(decoders(a={"ranks": 1}, b={"ranks": 3}), placement="separate", world_size=4)
    (problem,) = batch_problems(layout, batch_size=16, accumulation=1)
    assert problem.startswith("train.batch_size:")
    assert "group of 'b'" in problem
    assert "world" not in problem, "4 ranks can split 16"
    assert problem.endswith("12 or 24")
    (problem,) = batch_problems(layout, batch_size=24, accumulation=4)
    assert "the world" in problem
    assert "24 / 4 = 6" in problem
    assert problem.endswith("48"), "below a single unit there is no smaller one"


def test_nearest_batches_are_valid_and_around() -> None:
    rng = random.Random(2)
    seen = 0
    for _ in range(300):
        given, world_size = random_layout(rng)
        placement = rng.choice(["separate", "auto"])
        layout = plan(given, placement=placement, world_size=world_size)
        accumulation = rng.randint(1, 4)
        batch_size = accumulation * rng.randint(1, 100)
        fits = all(batch_size // accumulation % n == 0 for n in [world_size, *sizes(layout)])
        found = batch_problems(layout, batch_size=batch_size, accumulation=accumulation)
        assert bool(found) != fits
        if not found:
            continue
        seen += 1
        nearest = [int(n) for n in re.findall(r"\d+", found[0].split("sizes are")[1])]
        assert all(
            batch_problems(layout, batch_size=size, accumulation=accumulation) == []
            for size in nearest
        )
        assert nearest[-1] > batch_size
        assert nearest[0] < batch_size or len(nearest) == 1
        # Nothing valid lies between.
        below = nearest[0] if len(nearest) == 2 else 0
        between = range(below + accumulation, nearest[-1], accumulation)
        assert all(
            batch_problems(layout, batch_size=size, accumulation=accumulation) for size in between
        )
    assert seen > 100


@pytest.mark.parametrize(
    ("batch_size", "expected"), [(1, 12), (12, 12), (13, 24), (48, 48), (50, 60)]
)
def test_evaluation_batch_is_rounded_up_to_what_all_can_split(
    batch_size: int, expected: int
) -> None:
    layout = plan(decoders(a={"ranks": 1}, b={"ranks": 3}), placement="separate", world_size=4)
    assert eval_batch_size(layout, batch_size) == expected


def test_table_shows_every_group_and_its_ranks() -> None:
    layout = plan(decoders(a={"ranks": 1}, longer={"ranks": 3}), placement="separate", world_size=4)
    lines = layout.table().splitlines()
    assert "4 ranks" in lines[0]
    assert "separate" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["a", "longer"]
    assert [line.split(": ")[1] for line in lines[1:]] == ["0", "1, 2, 3"]
    assert len({line.index(":") - len(line.split()[1]) for line in lines[1:]}) == 1, "aligned"


# --- nodes


def test_groups_keep_to_nodes_where_they_can() -> None:
    given = decoders(a={"ranks": 4}, b={"ranks": 8}, c={"ranks": 4})
    layout = plan(given, placement="separate", world_size=16, ranks_per_node=8)
    assert ranks(layout) == {
        "a": (8, 9, 10, 11),
        "b": tuple(range(8)),
        "c": (12, 13, 14, 15),
    }
    assert layout.warning() == ""
    assert [line.split("(")[1] for line in layout.table().splitlines()[1:]] == [
        "node 1)",
        "node 0)",
        "node 1)",
    ]


def test_the_order_of_the_configuration_stays_where_nodes_make_no_difference() -> None:
    for per_node in (1, 2, 4, 8):
        layout = plan(decoders(a={}, b={}), placement="separate", world_size=8)
        on_nodes = plan(
            decoders(a={}, b={}), placement="separate", world_size=8, ranks_per_node=per_node
        )
        assert on_nodes.groups == layout.groups
        assert on_nodes.warning() == ""


def test_a_group_that_lies_unevenly_is_a_warning_with_the_table() -> None:
    given = decoders(a={"ranks": 2}, b={"ranks": 6})
    layout = plan(given, placement="separate", world_size=8, ranks_per_node=4)
    assert [group.decoder for group in layout.uneven] == ["b"]
    assert layout.warning().startswith("the group of 'b' has more ranks on one node")
    assert layout.warning().endswith(layout.table())
    assert "(nodes 0: 2, 1: 4)" in layout.table()
    even = plan(decoders(a={}, b={}), placement="colocated", world_size=8, ranks_per_node=4)
    assert even.warning() == ""


def test_placement_by_nodes_covers_any_world_and_never_makes_more_pieces() -> None:
    rng = random.Random(3)
    moved = 0
    for _ in range(1000):
        given, world_size = random_layout(rng)
        divisors = [size for size in range(1, world_size + 1) if world_size % size == 0]
        per_node = rng.choice(divisors)
        plain = plan(given, placement="separate", world_size=world_size)
        layout = plan(given, placement="separate", world_size=world_size, ranks_per_node=per_node)
        assert sizes(layout) == sizes(plain)
        assert sorted(r for group in layout.groups for r in group.ranks) == list(range(world_size))
        in_pieces = sum(len(layout.nodes_of(group)) for group in layout.groups)
        assert in_pieces <= sum(
            len({rank // per_node for rank in group.ranks}) for group in plain.groups
        )
        moved += layout.groups != plain.groups
    assert moved > 50


# --- shards


def test_neighbours_hold_a_copy_together() -> None:
    layout = plan(
        decoders(a={"ranks": 2}, b={"ranks": 4, "shard": 2}), placement="separate", world_size=6
    )
    a, b = layout.groups
    assert a.copies == ((0,), (1,))
    assert b.copies == ((2, 3), (4, 5))
    assert "b  4 ranks: 2, 3, 4, 5; a copy of the weights on 2+3, 4+5" in layout.table()
    assert "copy" not in layout.table().splitlines()[1]


def test_every_group_that_a_shard_does_not_divide_is_named() -> None:
    with pytest.raises(ValueError) as error:
        plan(decoders(a={"shard": 4}, b={"shard": 5}), placement="colocated", world_size=6)
    assert str(error.value) == (
        "decoders.a.shard: 4 does not divide the 6 ranks of its group; use one of 1, 2, 3, 6, or "
        "give it a multiple of 4 ranks; decoders.b.shard: 5 does not divide the 6 ranks of its "
        "group; use one of 1, 2, 3, 6, or give it a multiple of 5 ranks"
    )
