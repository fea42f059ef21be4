"""A report as one HTML file that needs nothing else: no network, no other file."""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from latentwire.report import cards, tables
from latentwire.report.charts import Chart, ChartMaker
from latentwire.report.html import Html, element, escaped, join, script_json, table
from latentwire.report.run_data import RunData
from latentwire.report.series import Series

_ASSETS = Path(__file__).parent / "assets"


def page(runs: Sequence[RunData]) -> str:
    """The report of one run, or of several compared.

    Args:
        runs: at least one.
    """
    maker = ChartMaker(runs)
    title = "LatentWire: " + ", ".join(run.name for run in runs)
    groups = {
        "compression": maker.compression(),
        "health": maker.health(),
        "losses": maker.losses(),
        "norms": maker.norms(),
        "validations": maker.validations(),
        "speed": maker.speed(),
    }
    explorer = maker.explorer()
    sections = {
        "Result": join(
            [
                tables.comparison(runs) if len(runs) > 1 else "",
                element(
                    "div",
                    tables.results(runs),
                    _figures(groups["compression"]),
                    class_="outcome",
                ),
            ]
        ),
        "Health": join(
            [
                _each(runs, lambda i: tables.health(runs[i], maker.curves.series[i])),
                _figures(groups["health"]),
            ]
        ),
        "Losses": _figures(groups["losses"]),
        "Gradient norms": _figures(groups["norms"]),
        "Validation": _figures(groups["validations"]),
        "Speed, memory and schedules": join(
            [
                _figures(groups["speed"]),
                _each(runs, lambda i: tables.ranks(maker.curves.series[i])),
            ]
        ),
        "Any key, by rank": _explorer(explorer),
        "Examples": _each(runs, lambda i: cards.cards(runs[i])),
        "Configuration": tables.configurations(runs),
    }
    sections = {name: body for name, body in sections.items() if body}
    data = {
        "runs": [
            {"name": run.name, "starts": series.axis.starts, "end": series.axis.end}
            for run, series in zip(runs, maker.curves.series, strict=True)
        ],
        "charts": [_payload(chart) for charts in groups.values() for chart in charts],
        "explorer": {key: [_curve(s) for s in found] for key, found in explorer.items()},
    }
    return _document(title, _head(runs, title, list(sections)), sections, data)


def _each(runs: Sequence[RunData], body: Callable[[int], Html]) -> Html:
    """What ``body`` makes of each run's index, under the run's name where there are several."""
    if len(runs) == 1:
        return body(0)
    return join(element("section", element("h3", run.name), body(i)) for i, run in enumerate(runs))


def _document(title: str, head: Html, sections: Mapping[str, Html], data: Mapping[str, Any]) -> str:
    scripts = [_asset("uPlot.iife.min.js"), _asset("report.js")]
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    # Texts in the page are the user's data: no script but these two runs, and nothing is fetched.
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {hashes}"
    style = _asset("uPlot.min.css") + _asset("report.css")
    body = [
        element("a", "Skip to the content", href="#content", class_="skip"),
        head,
        element(
            "main",
            element("noscript", element("p", "The charts need JavaScript; all tables do not.")),
            *(
                element("section", element("h2", name), body, id=_id(name))
                for name, body in sections.items()
            ),
            id="content",
            tabindex=-1,
        ),
        element("script", script_json(data), type="application/json", id="data"),
        *(element("script", Html(script)) for script in scripts),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escaped(title)}</title>\n<!-- Charts: uPlot, licence:\n"
        f"{_asset('uPlot.LICENSE')}-->\n<style>{style}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _head(runs: Sequence[RunData], title: str, names: Sequence[str]) -> Html:
    links = (element("li", element("a", name, href=f"#{_id(name)}")) for name in names)
    return element(
        "header",
        element("h1", title),
        *(_facts(run, named=len(runs) > 1) for run in runs),
        element("nav", element("ul", *links), aria_label="sections"),
    )


def _facts(run: RunData, *, named: bool) -> Html:
    """A run in a few numbers."""
    status = run.status
    facts = {"state": str(status.get("state", "unknown"))}
    if status.get("reason"):
        facts["reason"] = str(status["reason"])
    if status.get("stage"):
        facts["last step"] = f"{status['stage']} {status.get('step')}"
    newest = {str(r.get("decoder")): r for r in run.rows if r.get("kind") == "health"}
    for decoder, row in newest.items():
        facts[f"health of {decoder}"] = str(row.get("state", "unknown"))
    for decoder, scores in (run.metrics.get("decoders") or {}).items():
        arms = scores.get("arms", {})
        em = [tables.number(arms.get(arm, {}).get("em")) for arm in ("latent", "text")]
        facts[f"{decoder}: EM of the wire / of the text"] = " / ".join(em)
        facts[f"{decoder}: compression"] = tables.number(scores.get("compression_tokens"), 2) + "×"
    facts["report made"] = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    items = (element("div", element("dt", key), element("dd", text)) for key, text in facts.items())
    head = element("h2", run.name) if named else None
    return element("div", head, element("dl", *items, class_="facts"))


def _figures(charts: Sequence[Chart]) -> Html:
    """Places for the charts, each with the numbers that its curves end in."""
    found = []
    for chart in charts:
        notes = [chart.note] if chart.note else []
        num_bad = sum(len(s.bad) for s in chart.series)
        if num_bad:
            notes.append(f"{num_bad} values are not finite: crosses at the bottom.")
        num_zero = sum(y == 0 for s in chart.series for y in s.finite)
        if num_zero and chart.is_log:
            notes.append(f"{num_zero} values are 0, which lies below a logarithmic axis.")
        found.append(
            element(
                "figure",
                element("figcaption", element("span", chart.title)),
                element("div", class_="chart", data_chart=chart.id),
                element("p", " ".join(notes), class_="note") if notes else None,
                element(
                    "details",
                    element(
                        "summary",
                        "Numbers",
                        element("span", f" of {chart.title}", class_="unseen"),
                    ),
                    _numbers(chart),
                ),
                class_="chart-box",
                aria_label=chart.title,
            )
        )
    return element("div", *found, class_="charts") if found else Html("")


def _numbers(chart: Chart) -> Html:
    caption = f"Numbers of {chart.title}"
    if chart.kind == "points":
        lines = [
            [
                f"{marks['name']}, {label}",
                tables.number(x, 2),
                tables.number(y),
                tables.number([low, high]),
            ]
            for marks in chart.points
            for label, x, y, low, high in zip(
                marks["label"], marks["x"], marks["y"], marks["low"], marks["high"], strict=True
            )
        ]
        head = ["arm", "compression", chart.y_name, "interval"]
        return table(head, lines, caption=caption, is_numeric=True)
    head = ["curve", "first", "last", "least", "greatest", "points", "not finite"]
    lines = []
    for series in chart.series:
        finite = series.finite
        ends = [finite[0], finite[-1], min(finite), max(finite)] if finite else [None] * 4
        counts = [str(len(finite)), str(len(series.bad))]
        lines.append([series.name, *map(tables.number, ends), *counts])
    return table(head, lines, caption=caption, is_numeric=True)


def _explorer(found: Mapping[str, Sequence[Series]]) -> Html:
    if not found:
        return Html("")
    options = (element("option", key, value=key) for key in found)
    return element(
        "figure",
        element("figcaption", element("label", "Key ", element("select", *options, id="key"))),
        element("div", class_="chart", id="explorer"),
        class_="chart-box",
        aria_label="Any key, by rank",
    )


def _payload(chart: Chart) -> dict[str, Any]:
    return {
        "id": chart.id,
        "title": chart.title,
        "yName": chart.y_name,
        "log": chart.is_log,
        "kind": chart.kind,
        "series": [_curve(series) for series in chart.series],
        "points": chart.points,
    }


def _curve(series: Series) -> dict[str, Any]:
    thin = series.thinned()
    return {
        "name": thin.name,
        "colour": thin.colour,
        "dash": thin.dash,
        "run": thin.run,
        "x": thin.xs,
        "y": [None if y is None else float(f"{y:.6g}") for y in thin.ys],
        "bad": thin.bad,
    }


def _id(name: str) -> str:
    return "-".join(name.lower().replace(",", "").split())


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
