"""The report in a real browser: nothing fetched, nothing complained of, every chart drawn."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import report_cases
import stream_cases

from latentwire.report.series import POINTS
from latentwire.report.writing import write_report

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium, or the one at ``LATENTWIRE_BROWSER``."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = os.environ.get("LATENTWIRE_BROWSER") or next(
        filter(None, map(shutil.which, NAMES)), None
    )
    if path is None:
        pytest.skip("needs Chromium; install it, or name it in LATENTWIRE_BROWSER")
    with api.sync_playwright() as playwright:
        # No sandbox: tests run as root in containers, on a page that they wrote.
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


class Opened:
    """A page with what it asked for and complained of."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        size = options.pop("size", (1200, 900))
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        self.page = context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]")
        assert self.said == []
        assert self.asked == [path.as_uri()]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four ranks with health, a hole, and something that was not finite."""
    rows = []
    for row in stream_cases.run_rows():
        if row["stage"] == "B" and 40 < row["step"] < 70:
            continue  # a hole
        if row["kind"] == "step" and (row["stage"], row["step"], row["rank"]) == ("A", 50, 0):
            row |= {"tf": None, "nonfinite": ["tf"], "skipped": True}
        rows.append(row)
    folder = report_cases.write_run(tmp_path_factory.mktemp("browser") / "run", rows)
    return write_report([folder])


# What a chart's canvas has besides its axes: pixels in the colour of each curve that is shown.
MARKS = """() => latentwireCharts.map((chart) => {
  const plot = chart.plot, box = plot.bbox;
  const pixels = plot.ctx.getImageData(box.left, box.top, box.width, box.height).data;
  const near = (i, c) => Math.abs(pixels[i] - c[0]) + Math.abs(pixels[i + 1] - c[1])
    + Math.abs(pixels[i + 2] - c[2]) < 24 && pixels[i + 3] > 200;
  const counts = {};
  for (const one of chart.series) {
    const probe = document.createElement('i');
    probe.style.color = `var(--c${one.colour % 8})`;
    document.body.append(probe);
    const c = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
    probe.remove();
    let count = 0;
    for (let i = 0; i < pixels.length; i += 4) if (near(i, c)) count++;
    counts[one.colour] = count;
  }
  return [chart.id, counts, chart.series.length];
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_chart_has_marks(browser: Any, report: Path, scheme: str) -> None:
    page = Opened(browser, report, color_scheme=scheme).page
    charts = page.evaluate(MARKS)
    assert len(charts) == page.locator("[data-chart]").count() + 1, "all, and the explorer's"
    assert len(charts) > 30
    for name, counts, num_series in charts:
        assert num_series > 0, name
        # Of curves that lie on each other only the last one's colour shows.
        assert max(counts.values()) > 10, (name, counts)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]


def chart(page: Any, name: str) -> Any:
    return page.locator(f'figure:has([data-chart="{name}"])')


def test_hover_shows_values(browser: Any, report: Path) -> None:
    page = Opened(browser, report).page
    figure = chart(page, "loss-tf")
    figure.scroll_into_view_if_needed()
    box = figure.locator(".u-over").bounding_box()
    # A tenth of the way along 200 steps is step 20 of stage A.
    page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + box["height"] / 2)
    assert figure.locator(".where").inner_text() == "A 20"
    row = next(r for r in stream_cases.run_rows() if r["step"] == 20 and r.get("rank") == 0)
    values = figure.locator(".value").all_inner_texts()
    assert float(values[0]) == pytest.approx(row["tf"], rel=1e-3)
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    assert figure.locator(".where").inner_text() == "A 50"
    assert figure.locator(".value").all_inner_texts()[0] == "not finite"


def test_a_hole_is_no_line(browser: Any, report: Path) -> None:
    page = Opened(browser, report).page
    ys = page.evaluate(
        "() => { const c = latentwireCharts.find((c) => c.id === 'loss-tf');"
        " return c.data[0].map((x, i) => [x, c.data[1][i]]); }"
    )
    assert [x for x, y in ys if y is None] == [50, 141]
    columns = page.evaluate(
        """() => { const c = latentwireCharts.find((c) => c.id === 'loss-tf'), p = c.plot;
        const count = (x) => { const at = Math.round(p.valToPos(x, 'x', true));
          const d = p.ctx.getImageData(at, p.bbox.top, 1, p.bbox.height).data;
          let n = 0; for (let i = 0; i < d.length; i += 4)
            if (d[i + 2] - d[i] > 60 && d[i + 3] > 200) n++; return n; };
        return [count(133), count(156)]; }"""
    )
    assert columns[0] > 0 and columns[1] == 0


def test_zoom_by_mouse_keys_and_buttons(browser: Any, report: Path) -> None:
    page = Opened(browser, report).page
    figure = chart(page, "loss-tf")
    figure.scroll_into_view_if_needed()
    script = (
        "() => { const s = latentwireCharts.find((c) => c.id === 'loss-tf').plot.scales.x;"
        " return [s.min, s.max]; }"
    )
    assert page.evaluate(script) == [0, 200]
    box = figure.locator(".u-over").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.25, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, middle, steps=4)
    page.mouse.up()
    page.wait_for_function(f"({script})()[0] > 45")
    low, high = page.evaluate(script)
    assert low == pytest.approx(50, abs=3) and high == pytest.approx(150, abs=3)
    page.mouse.move(1, 1)  # off the chart: the keys move on from where the pointer is
    figure.locator(".canvas").focus()
    page.keyboard.press("0")
    page.wait_for_function(f"({script})()[0] === 0")
    page.keyboard.press("ArrowRight")
    assert figure.locator(".where").inner_text() == "A 5"
    page.keyboard.press("ArrowRight")
    assert figure.locator(".where").inner_text() == "A 10"
    page.get_by_role("button", name="Zoom in: tf", exact=True).click()
    page.wait_for_function(f"({script})()[1] < 200")


def test_the_tables_numbers_are_those_of_the_metrics(browser: Any, report: Path) -> None:
    page = Opened(browser, report).page
    metrics = json.loads((report.parent / "metrics.json").read_text())
    cells = page.evaluate(
        "() => [...document.querySelectorAll('td[data-key]')]"
        ".map((td) => [td.dataset.decoder, td.dataset.arm, td.dataset.key, td.textContent])"
    )
    assert len(cells) == 2 * len(report_cases.ARMS) * 8
    for decoder, arm, key, text in cells:
        value = metrics["decoders"][decoder]["arms"][arm].get(key)
        if value is None:
            assert text == "–"
        elif isinstance(value, list):
            assert json.loads(text) == pytest.approx(value, abs=6e-4)
        else:
            assert float(text) == pytest.approx(value, abs=6e-3 if value > 5 else 6e-4)


def test_texts_run_no_script(browser: Any, report: Path) -> None:
    page = Opened(browser, report).page
    assert page.evaluate("window.hacked") is None
    assert report_cases.HOSTILE in page.locator("blockquote").first.text_content()


def test_it_fits_a_phone_and_answers_a_finger(browser: Any, report: Path) -> None:
    page = Opened(browser, report, size=(390, 844), has_touch=True, is_mobile=True).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    figure = chart(page, "loss-tf")
    figure.scroll_into_view_if_needed()
    box = figure.locator(".u-over").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + 20)
    # The page hears of it a moment later.
    where = figure.locator(".where")
    where.filter(has_text="A 100").wait_for()
    assert where.inner_text() == "A 100"


def test_a_keyboard_reaches_everything(browser: Any, report: Path) -> None:
    page = Opened(browser, report).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#content"
    unnamed = page.evaluate(
        "() => [...document.querySelectorAll('button, [tabindex=\"0\"]')].filter("
        "(e) => !(e.getAttribute('aria-label') || e.textContent.trim())).length"
    )
    assert unnamed == 0
    legend = chart(page, "loss-tf").locator(".legend button").first
    legend.focus()
    page.keyboard.press("Enter")
    assert legend.get_attribute("aria-pressed") == "false"


def test_choices_change_what_is_shown(browser: Any, report: Path) -> None:
    opened = Opened(browser, report)
    page = opened.page
    page.select_option("#key", "grad_kd/adapter")
    names = page.locator("figure:has(#explorer) .legend button").all_inner_texts()
    assert [name.strip() for name in names] == [
        *("one, rank 0", "one, rank 2", "two, rank 1", "two, rank 3")
    ]
    before = page.locator(".card:visible").count()
    page.select_option(".card-filter", "lost")
    assert 0 < page.locator(".card:visible").count() < before
    assert opened.said == []


def test_ten_megabytes_make_a_light_page(browser: Any, tmp_path: Path) -> None:
    """What makes a page slow has bounds. How long it took is printed (-s), by the page's clock."""
    rows = stream_cases.run_rows(steps=1600, every=1, ranks=4, health=50)
    folder = report_cases.write_run(tmp_path / "long", rows)
    size = (folder / "diagnostics.jsonl").stat().st_size
    assert size > 10e6
    path = write_report([folder])
    page = Opened(browser, path).page
    counts = page.evaluate("latentwireCharts.flatMap((c) => c.series.map((s) => s.x.length))")
    assert max(counts) <= POINTS + 3 and len(counts) > 50
    assert path.stat().st_size < 4e6
    print(
        f"{size / 1e6:.1f} MB of rows, {path.stat().st_size / 1e6:.2f} MB of page: "
        f"drawn {page.evaluate('latentwireReady'):.0f} ms after it was asked for"
    )
