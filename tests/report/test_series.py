"""Curves of a report: gaps stay gaps, extremes stay, non-finite is marked, ranks are combined."""

import math
from typing import Any

import pytest
import stream_cases as driver

from latentwire.report.series import Axis, RunSeries, Series, holes, line


@pytest.mark.parametrize(
    ("xs", "expected"),
    [
        ([], []),
        ([1, 100], []),
        ([1, 2, 3, 4], []),
        ([10, 20, 30, 60, 70, 80], [(30, 60)]),
        ([1, 2, 3, 10, 20, 30], []),  # the interval changed
        ([10, 20, 25, 30, 40, 80, 90, 100], [(40, 80)]),  # an odd row between
    ],
)
def test_missing_rows_are_seen(xs: list[int], expected: list[tuple[int, int]]) -> None:
    assert holes(xs) == expected


def test_a_line_is_broken_where_rows_are_missing_and_where_values_are_not_finite() -> None:
    points = {10: 1.0, 20: None, 30: 3.0, 60: 6.0}
    curve = line("x", points, [(30, 60)])
    assert list(zip(curve.xs, curve.ys, strict=True)) == [
        *((10, 1.0), (20, None), (30, 3.0), (31, None), (60, 6.0))
    ]
    assert curve.bad == [20]


def test_a_key_measured_now_and_then_is_no_gap_but_over_a_hole() -> None:
    rows = [driver.step_row("A", s, 0, "one") for s in range(1, 101) if not 52 <= s <= 68]
    curve = RunSeries(rows).of_rank("x", "grad_tf", decoder="one", rank=0)
    assert [x for x, y in zip(curve.xs, curve.ys, strict=True) if y is None] == [52]
    assert [x for x, y in zip(curve.xs, curve.ys, strict=True) if y is not None] == [
        *(10, 20, 30, 40, 50, 70, 80, 90, 100)
    ]


def test_thinning_keeps_extremes_ends_and_gaps() -> None:
    ys: list[float | None] = [math.sin(i / 300) for i in range(10_000)]
    ys[1234], ys[7777], ys[5000] = 99.0, -99.0, None
    curve = Series(name="x", xs=list(range(10_000)), ys=ys, bad=[5000])
    thin = curve.thinned(400)
    assert len(thin.xs) <= 403
    found = dict(zip(thin.xs, thin.ys, strict=True))
    assert found[1234] == 99.0 and found[7777] == -99.0 and found[5000] is None
    assert thin.xs[0] == 0 and thin.xs[-1] == 9_999 and thin.bad == [5000]
    assert all(found[x] == ys[x] for x in thin.xs), "no value is made up"
    short = Series(name="x", xs=[1, 2], ys=[1.0, None])
    assert short.thinned(400) is short


def test_stages_lie_one_behind_the_other() -> None:
    axis = Axis(driver.run_rows(steps=100))
    assert axis.starts == {"A": 0, "B": 100} and axis.end == 200
    assert axis.at({"stage": "B", "step": 7}) == 107
    assert axis.at({"stage": "C", "step": 7}) is None


def test_over_ranks_is_the_median_and_late_rows_find_their_place() -> None:
    rows = list(driver.run_rows(ranks=6))
    late = [{**rows[0], "late": True}]
    series = RunSeries(rows[1:] + late)
    curve = series.over_ranks("x", "grad_tf", decoder="one")
    assert curve is not None
    fall = math.exp(-10 / 80)
    assert (curve.xs[0], curve.ys[0]) == (10, pytest.approx(3 * fall))  # ranks 0, 2, 4
    rank = series.of_rank("x", "tf_local", decoder="one", rank=0)
    assert rank.xs[:2] == [5, 10] and None not in rank.ys
    assert series.over_ranks("x", "no_such_key") is None


def test_one_rank_not_finite_is_not_averaged_away() -> None:
    rows: list[dict[str, Any]] = list(driver.run_rows(ranks=4))
    bad = next(r for r in rows if r["kind"] == "step" and r["step"] == 20 and r["rank"] == 2)
    bad |= {"tf": None, "nonfinite": ["tf"]}
    curve = RunSeries(rows).over_ranks("x", "tf", decoder="one")
    assert curve is not None and curve.bad == [20]
    assert curve.ys[curve.xs.index(20)] is None


def test_rows_of_other_versions_are_no_error() -> None:
    rows: list[dict[str, Any]] = [
        {},
        {"stage": "A", "step": 1},
        {"stage": "A", "step": "x", "rank": 0},
        {"kind": "weather", "stage": "A", "step": 1, "rank": 0, "decoder": "one"},
        {"stage": "A", "step": 2, "rank": 0, "decoder": "one", "tf": True, "kd": "much", "new": 3},
    ]
    series = RunSeries(rows)
    assert series.measured() == ["new"]
