"""Plots read back as XML: where points stand on their axes, what is written, and how it fits."""

import itertools
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence

import pytest

from latentwire.svg import Line, Mark, curves, forest, plot, ticks

WIDTH, RIGHT = 720, 696
NASTY = 'a <b> & "c"'
CURVES = {
    "up": [(10.0, 0.0), (20.0, 0.25), (35.0, 0.5), (80.0, 1.0)],
    "down": [(5.0, 0.9), (40.0, 0.3), (47.0, 0.1)],
    "alone": [(60.0, 0.5)],
}
LONG = [f"a name of some length, {index}" for index in range(12)]


def drawn(text: str) -> ET.Element:
    root = ET.fromstring(text)
    for item in root.iter():
        item.tag = item.tag.rpartition("}")[2]
    assert root.get("viewBox") == f"0 0 {WIDTH} {root.get('height')}"
    return root


def number(item: ET.Element, name: str) -> float:
    return float(item.attrib[name])


def texts(root: ET.Element) -> list[ET.Element]:
    return [item for item in root.iter("text") if item.text]


def words(root: ET.Element) -> list[str]:
    return [item.text or "" for item in texts(root)]


def axis(root: ET.Element, *, of_x: bool) -> dict[float, float]:
    """Where the picture says that values are: of each number at its axis the place of its tick."""
    anchor = "middle" if of_x else "end"
    numbers = [
        item
        for item in texts(root)
        if item.get("text-anchor") == anchor and re.fullmatch(r"-?[\d.e+]+", item.text or "")
    ]
    # Numbers stand under the x axis, and lines of text are 4 higher than their middle.
    return {
        float(item.text or ""): number(item, "x") if of_x else number(item, "y") - 4
        for item in numbers
    }


def on(places: dict[float, float]) -> Callable[[float], float]:
    """The place of any value between the first and the last tick."""
    (low, first), (high, last) = (pick(places.items()) for pick in (min, max))
    return lambda value: first + (value - low) / (high - low) * (last - first)


def points(item: ET.Element) -> list[tuple[float, float]]:
    pairs = [pair.split(",") for pair in item.attrib["points"].split()]
    return [(float(x), float(y)) for x, y in pairs]


def finite(root: ET.Element) -> bool:
    keys = {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy"}
    found = [number(item, key) for item in root.iter() for key in keys & item.attrib.keys()]
    return all(map(math.isfinite, found))


def curve_picture(series: dict[str, list[tuple[float, float]]]) -> ET.Element:
    return drawn(curves(title="t", x_name="step", y_name="right", series=series))


# --- curves


def test_a_curve_goes_through_its_points() -> None:
    root = curve_picture(CURVES)
    across, up = on(axis(root, of_x=True)), on(axis(root, of_x=False))
    found = {
        item.findtext("title"): item for item in root.iter("g") if item.find("title") is not None
    }
    assert list(found) == list(CURVES)
    for index, (name, expected) in enumerate(CURVES.items()):
        assert found[name].get("class") == f"c{index}"
        (line,) = found[name].iter("polyline")
        # Places are written to a tenth.
        assert [x for x, _ in points(line)] == pytest.approx(
            [across(x) for x, _ in expected], abs=0.1
        )
        assert [y for _, y in points(line)] == pytest.approx([up(y) for _, y in expected], abs=0.1)
    (up_line,) = found["up"].iter("polyline")
    for (x, y), (later, higher) in itertools.pairwise(points(up_line)):
        assert later > x and higher < y, "to the right, and up"
    (circle,) = found["up"].iter("circle")
    assert (number(circle, "cx"), number(circle, "cy")) == points(up_line)[-1], "marked at its end"


def test_axes_hold_every_curve_and_end_at_their_ticks() -> None:
    root = curve_picture(CURVES)
    across, up = axis(root, of_x=True), axis(root, of_x=False)
    assert (min(across), min(up), max(up)) == (0, 0, 1)
    assert max(across) >= 80
    assert across[max(across)] == RIGHT
    for places, sign in ((across, 1), (up, -1)):
        values = sorted(places)
        steps = [sign * (places[b] - places[a]) for a, b in itertools.pairwise(values)]
        assert min(steps) > 0 and max(steps) - min(steps) < 0.2, "even, and one way"
    grid = [item for item in root.iter("line") if item.get("class") == "grid"]
    assert [number(item, "y1") for item in grid] == pytest.approx(list(up.values()), abs=0.1)
    for line in root.iter("polyline"):
        for x, y in points(line):
            assert across[0] <= x <= RIGHT
            assert up[1] <= y <= up[0]


def test_on_a_logarithmic_axis_doublings_are_equally_far_apart() -> None:
    series = {"one": [(3.0, 0.9), (6.0, 0.8), (12.0, 0.5)], "two": [(40.0, 0.1)]}
    root = drawn(curves(title="t", x_name="x", y_name="y", series=series, log_x=True))
    places = axis(root, of_x=True)
    assert list(places) == [2, 4, 8, 16, 32, 64]
    steps = [places[b] - places[a] for a, b in itertools.pairwise(places)]
    assert max(steps) - min(steps) < 0.2
    (line, _) = root.iter("polyline")
    first, second, third = (x for x, _ in points(line))
    assert second - first == pytest.approx(steps[0], abs=0.2)
    assert third - second == pytest.approx(steps[0], abs=0.2)
    marks = [mark for mark in root.iter("circle") if number(mark, "cy") > 80]
    assert len(marks) == 3, "each point of the first is marked"
    alone = drawn(curves(title="t", x_name="x", y_name="y", series={}, log_x=True))
    assert finite(alone)


@pytest.mark.parametrize("series", [{}, {"none": []}, {"one": [(0.0, 0.5)]}], ids=str)
def test_curves_of_nothing_are_an_empty_picture(
    series: dict[str, list[tuple[float, float]]],
) -> None:
    root = curve_picture(series)
    assert max(axis(root, of_x=True)) == 1
    assert finite(root)
    assert [points(line) for line in root.iter("polyline")] == [
        [(64.0, pytest.approx(220, abs=0.1))] if own else [] for own in series.values()
    ]


# --- what is written


def mark(low: float, high: float, *, label: str = "m", title: str = "t") -> Mark:
    return Mark(x=(low + high) / 2, y=0.5, low=low, high=high, label=label, title=title)


@pytest.mark.parametrize(
    "text",
    [
        curves(title=NASTY, x_name=NASTY, y_name=NASTY, series={NASTY: [(1.0, 0.5)]}),
        forest(title=NASTY, x_name=NASTY, marks=[mark(0.1, 0.2, label=NASTY, title=NASTY)]),
        plot(
            title=NASTY,
            x_name=NASTY,
            y_name=NASTY,
            series={NASTY: [mark(0.1, 0.2, label=NASTY, title=NASTY)]},
            lines={NASTY: Line(y=0.5)},
            line_name=NASTY,
        ),
    ],
    ids=["curves", "forest", "plot"],
)
def test_any_name_can_be_written(text: str) -> None:
    root = drawn(text)
    assert root.get("aria-label") == NASTY
    assert words(root).count(NASTY) >= 3, "the title and what else it has"
    assert any(NASTY in (item.text or "") for item in root.iter("title"))
    assert not list(root.iter("b"))


# --- the legend


def legend(root: ET.Element, names: Sequence[str]) -> dict[float, list[tuple[float, float, str]]]:
    """Entries by row, from the top: where each starts and ends."""
    found: dict[float, list[tuple[float, float, str]]] = {}
    for item in texts(root):
        if item.text in names and item.get("text-anchor") == "start":
            # A mark or a line stands in front of a name; a letter is about 7 wide.
            first, last = number(item, "x") - 14, number(item, "x") + 7 * len(item.text)
            found.setdefault(number(item, "y"), []).append((first, last, item.text))
    return dict(sorted(found.items()))


@pytest.mark.parametrize("number_of_names", [0, 1, 3, 12])
def test_a_legend_takes_as_many_rows_as_it_needs(number_of_names: int) -> None:
    names = LONG[:number_of_names]
    root = curve_picture({name: [(1.0, 0.5)] for name in names})
    rows = legend(root, names)
    assert [name for row in rows.values() for *_, name in row] == names, "each once, in order"
    for row in rows.values():
        assert all(first >= 0 and last <= WIDTH for first, last, _ in row)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(row)), "side by side"
    assert all(below - above >= 16 for above, below in itertools.pairwise(rows)), (
        "no row on another"
    )
    (title,) = (item for item in texts(root) if item.get("class") == "title")
    assert all(y - number(title, "y") >= 16 for y in rows)
    # The plot makes room and stays as high as it was.
    up = axis(root, of_x=False)
    assert all(up[1] - y >= 12 for y in rows)
    height = number(root, "height")
    assert up[0] - up[1] == pytest.approx(288, abs=0.1)
    assert height == 420 + 18 * (max(1, len(rows)) - 1)
    assert up[0] < height - 40
    if number_of_names == 12:
        assert len(rows) == 4


def test_the_reference_line_is_named_last_in_the_legend() -> None:
    text = plot(
        title="t",
        x_name="x",
        y_name="y",
        series={name: [mark(0.2, 0.4)] for name in LONG[:4]},
        lines={LONG[0]: Line(y=0.9)},
        line_name="what the text gives",
    )
    root = drawn(text)
    rows = legend(root, [*LONG[:4], "what the text gives"])
    assert [len(row) for row in rows.values()] == [3, 2]
    assert list(rows.values())[-1][-1][-1] == "what the text gives"
    (sample,) = (item for item in root.iter("line") if item.get("class") == "axis reference")
    one, other = list(rows.values())[-1]
    assert one[1] < number(sample, "x1") < number(sample, "x2") < other[0] + 14
    (reference,) = (item for item in root.iter("line") if "reference c0" in item.get("class", ""))
    up = on(axis(root, of_x=False))
    assert number(reference, "y1") == number(reference, "y2") == pytest.approx(up(0.9), abs=0.1)


def test_a_name_longer_than_the_picture_has_a_row_of_its_own() -> None:
    names = ["short", "x" * 120, "behind"]
    rows = legend(curve_picture({name: [(1.0, 0.5)] for name in names}), names)
    assert [[name for *_, name in row] for row in rows.values()] == [[name] for name in names]


# --- forest

BETTER, WORSE, EITHER = "c2", "c1", "c7"
INTERVALS = [
    (0.2, 0.4, BETTER),
    (0.01, 0.02, BETTER),
    (0.0, 0.1, EITHER),
    (-0.1, 0.3, EITHER),
    (-0.1, 0.0, EITHER),
    (-0.02, -0.01, WORSE),
    (-0.5, -0.3, WORSE),
]


def forest_picture(intervals: Sequence[tuple[float, float]]) -> ET.Element:
    marks = [
        mark(low, high, label=f"row {index}", title=f"title {index}")
        for index, (low, high) in enumerate(intervals)
    ]
    return drawn(forest(title="t", x_name="difference", marks=marks))


def test_a_forest_shows_each_interval_in_a_line_of_its_own() -> None:
    root = forest_picture([(low, high) for low, high, _ in INTERVALS])
    places = axis(root, of_x=True)
    across = on(places)
    assert min(places) <= -0.5 and max(places) >= 0.4 and 0 in places
    assert places[max(places)] == RIGHT
    rows = list(root.iter("g"))
    heights = []
    for index, (row, (low, high, colour)) in enumerate(zip(rows, INTERVALS, strict=True)):
        (line,), (circle,) = row.iter("line"), row.iter("circle")
        assert row.get("class") == colour, (low, high)
        assert number(line, "x1") == pytest.approx(across(low), abs=0.1)
        assert number(line, "x2") == pytest.approx(across(high), abs=0.1)
        assert number(circle, "cx") == pytest.approx(across((low + high) / 2), abs=0.1)
        assert number(line, "y1") == number(line, "y2") == number(circle, "cy")
        assert row.findtext("title") == f"title {index}"
        (label,) = (item for item in texts(root) if item.text == f"row {index}")
        assert number(label, "y") - 4 == number(circle, "cy")
        assert number(label, "x") < min(places.values()), "beside the plot"
        heights.append(number(circle, "cy"))
    assert all(below - above >= 16 for above, below in itertools.pairwise(heights)), "from the top"
    assert heights[-1] < number(root, "height") - 56


def test_the_line_at_no_difference_goes_through_all_lines() -> None:
    root = forest_picture([(0.2, 0.4), (0.3, 0.5)])
    zero = axis(root, of_x=True)[0]
    (line,) = (
        item
        for item in root.iter("line")
        if item.get("class") == "axis" and number(item, "y2") - number(item, "y1") > 20
    )
    assert number(line, "x1") == number(line, "x2") == zero
    for circle in root.iter("circle"):
        assert number(line, "y1") < number(circle, "cy") < number(line, "y2")


@pytest.mark.parametrize("side", [1, -1])
def test_a_forest_of_one_side_begins_at_no_difference(side: int) -> None:
    low, high = sorted((0.2 * side, 0.35 * side))
    places = axis(forest_picture([(low, high)]), of_x=True)
    assert (min(places) if side > 0 else max(places)) == 0


@pytest.mark.parametrize("intervals", [[], [(0.0, 0.0)]], ids=["nothing", "no difference"])
def test_a_forest_of_nothing_has_an_axis_that_can_be_read(
    intervals: list[tuple[float, float]],
) -> None:
    root = forest_picture(intervals)
    assert list(axis(root, of_x=True)) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert len(list(root.iter("g"))) == len(intervals)
    assert finite(root)


@pytest.mark.parametrize("value", [0.0, 0.5, -0.5, 3.0, -40.0])
def test_ticks_at_one_value_are_of_its_size(value: float) -> None:
    found = ticks(value, value)
    assert found[0] == value
    assert found[-1] - found[0] == pytest.approx(abs(value) or 1.0)
    assert len({f"{tick:g}" for tick in found}) == len(found) > 2
