"""The report as a file: what is in it, that texts stay texts, and what is refused."""

import json
import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import report_cases
import stream_cases

from latentwire import cli
from latentwire.config import ConfigError
from latentwire.report.cards import choose
from latentwire.report.charts import ChartMaker
from latentwire.report.curves import MAX_RANKS
from latentwire.report.html import element, script_json
from latentwire.report.run_data import read_run
from latentwire.report.writing import write_report


class Page(HTMLParser):
    """A page's cells of scores, its scripts, and where it would fetch from."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: dict[tuple[str, str, str], str] = {}
        self.scripts: list[dict[str, str | None]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.json = ""
        self._cell: tuple[str, str, str] | None = None
        self._in_data = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.ids += [value for key, value in attrs if key == "id" and value]
        self.links += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith("#")]
        if tag == "script":
            self.scripts.append(own)
            self._in_data = own.get("id") == "data"
        if tag == "td" and "data-key" in own:
            self._cell = tuple(str(own[f"data-{n}"]) for n in ("decoder", "arm", "key"))  # type: ignore[assignment]

    def handle_endtag(self, tag: str) -> None:
        self._cell = None
        self._in_data = self._in_data and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.cells[self._cell] = data
        if self._in_data:
            self.json += data


def report(tmp_path: Path, *names: str, **options: Any) -> tuple[Page, str]:
    folders = [
        report_cases.write_run(tmp_path / name, seed=i, **options) for i, name in enumerate(names)
    ]
    text = write_report(folders).read_text(encoding="utf-8")
    return Page(text), text


def test_it_needs_no_other_file(tmp_path: Path) -> None:
    page, text = report(tmp_path, "one")
    assert page.links == ["data:,"]
    assert "@import" not in text and not re.search(r"url\((?!data:)", text)
    assert "default-src 'none'" in text
    assert "Permission is hereby granted" in text, "the library's licence stands in the file"
    assert len(page.ids) == len(set(page.ids))
    assert len(text) < 600_000


def test_texts_stay_texts(tmp_path: Path) -> None:
    page, text = report(tmp_path, "one")
    assert len(page.scripts) == 3
    assert "<script>window.hacked" not in text
    assert "&lt;script&gt;window.hacked" in text
    value = {"x": report_cases.HOSTILE}
    encoded = script_json(value)
    assert not set("<>&\u2028") & set(encoded) and json.loads(encoded) == value
    with pytest.raises(ValueError, match="JSON compliant"):
        script_json({"x": float("nan")})
    assert element("p", 'a"<b>', title='"<', hidden=True, data_x=None) == (
        '<p title="&quot;&lt;" hidden>a&quot;&lt;b&gt;</p>'
    )


def test_the_numbers_are_those_of_the_metrics(tmp_path: Path) -> None:
    page, _ = report(tmp_path, "one")
    metrics = json.loads((tmp_path / "one" / "metrics.json").read_text())
    for decoder, scores in metrics["decoders"].items():
        for arm, own in scores["arms"].items():
            assert page.cells[decoder, arm, "em"] == f"{own['em']:.3f}"
            low, high = own["em_ci95"]
            assert page.cells[decoder, arm, "em_ci95"] == f"[{low:.3f}, {high:.3f}]"
    assert page.cells["one", "latent@10", "compression_tokens"] == "10.00"


def test_every_chart_has_its_place_and_a_curve(tmp_path: Path) -> None:
    page, text = report(tmp_path, "one")
    data = json.loads(page.json)
    charts = {chart["id"]: chart for chart in data["charts"]}
    assert re.findall(r'data-chart="([^"]+)"', text) == list(charts)
    wanted = "loss-tf first_acc tf_local grad_norm grad-one-prompt grad-two-encoder ranks-grad_tf "
    wanted += (
        "health-right_minus_wrong health-update_ratio/encoder sec_per_step seconds peak_memory "
    )
    wanted += "lr weights val-em compression"
    assert set(wanted.split()) <= set(charts)
    assert [s["name"] for s in charts["grad_norm"]["series"]] == ["grad_norm"]
    assert [s["name"] for s in charts["units-one"]["series"]] == [
        *("encoder", "adapter", "deep_prefix")
    ]
    assert [s["name"] for s in charts["grad-one-encoder"]["series"]] == ["tf", "first", "kd"]
    assert charts["peak_memory"]["series"][0]["y"][0] == 1.0
    assert {"tf", "grad_kd/adapter"} <= set(data["explorer"])


def test_trouble_is_shown(tmp_path: Path) -> None:
    rows = list(stream_cases.run_rows())
    rows[4] |= {"tf": None, "nonfinite": ["tf", "grad_kd/encoder"], "skipped": True}
    rows[8] |= {"dropped": 3}
    rows[9] |= {"late": True}
    rows.append(stream_cases.health_row("B", 100, "two", state="collapsed", reasons=["<why>"]))
    page, text = report(tmp_path, "one", rows=rows)
    assert "not finite: tf, grad_kd/encoder" in text
    for part in ("skipped steps: 1", "late rows: 1", "dropped rows: 3", "&lt;why&gt;"):
        assert part in text, part
    assert 'class="state collapsed"' in text
    chart = next(c for c in json.loads(page.json)["charts"] if c["id"] == "loss-tf")
    assert [len(s["bad"]) for s in chart["series"]] == [1, 0]
    assert "1 values are not finite" in text


def test_several_runs_are_compared(tmp_path: Path) -> None:
    page, text = report(tmp_path, "one", "other")
    assert (tmp_path / "one" / "report-compared.html").is_file()
    assert "Keys in which the runs differ" in text and ">run.seed<" in text
    chart = next(c for c in json.loads(page.json)["charts"] if c["id"] == "loss-tf")
    assert [(s["name"], s["colour"], s["dash"]) for s in chart["series"]] == [
        *(("one: one", 0, 0), ("one: two", 0, 1), ("other: one", 1, 0), ("other: two", 1, 1))
    ]


def test_of_many_ranks_the_spread_and_the_most_unlike_are_drawn(tmp_path: Path) -> None:
    rows = [
        stream_cases.step_row("A", step, rank, "one", tf_local=9.0 if rank == 13 else 1.0)
        for step in range(1, 6)
        for rank in range(MAX_RANKS * 3)
    ]
    folder = report_cases.write_run(tmp_path / "r", rows)
    (chart,) = [c for c in ChartMaker([read_run(folder)]).losses() if c.id == "tf_local"]
    names = [series.name for series in chart.series]
    assert names[:3] == [f"one, {name} of 24 ranks" for name in ("least", "median", "greatest")]
    assert names[3] == "one, rank 13" and len(names) == 6
    assert chart.series[2].ys == [9.0] * 5


def test_cards_are_spread_and_show_what_the_wire_loses(tmp_path: Path) -> None:
    run = read_run(report_cases.write_run(tmp_path / "r"))
    examples: dict[int, Any] = {}
    for row in run.predictions:
        examples.setdefault(row["example"], {})[row["decoder"], row["arm"]] = row
    chosen = choose(examples)
    assert len(chosen) == 15 and chosen == sorted(set(chosen))
    # Right with the text (0 to 8), wrong with the wire (from 7): all of them are among the cards.
    assert {7, 8, 17, 18, 27, 28} <= set(chosen)


def test_a_run_that_only_trained_has_a_report_too(tmp_path: Path) -> None:
    stream_cases.write(tmp_path / "r" / "diagnostics.jsonl", stream_cases.run_rows())
    with (tmp_path / "r" / "diagnostics.jsonl").open("a") as file:
        file.write('{"torn')
    text = write_report([tmp_path / "r"]).read_text()
    assert "Stage C has not run." in text and "This run has no predictions." in text


def test_rows_of_another_run_in_a_shared_file_are_left_out(tmp_path: Path) -> None:
    folder = report_cases.write_run(tmp_path / "r")
    (folder / "diagnostics.jsonl").unlink()
    rows = [stream_cases.step_row("A", 1, 0, "one", run=name) for name in ("r", "other")]
    shared = stream_cases.write(tmp_path / "shared.jsonl", rows)
    (folder / "status.json").write_text(json.dumps({"files": {"diagnostics": str(shared)}}))
    assert read_run(folder).rows == rows[:1]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = report_cases.write_run(tmp_path / "one")
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "x.html")]) == 0
    assert (tmp_path / "x.html").is_file()
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.is_file()) == [".html"]
    assert cli.main(["report", str(tmp_path / "nowhere")]) == 2
    assert "no such run" in capsys.readouterr().err
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "no" / "x.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        write_report([tmp_path])


def test_the_report_goes_into_what_is_there(tmp_path: Path) -> None:
    """A device or a pipe is written to, not replaced; a link stays one."""
    run = report_cases.write_run(tmp_path / "r")
    real, link, pipe = (tmp_path / name for name in ("real.html", "link.html", "pipe"))
    (tmp_path / "real.html.tmp").write_text("mine")
    link.symlink_to(real)
    assert write_report([run], link) == link
    assert link.is_symlink() and real.read_text().startswith("<!doctype html>")
    assert (tmp_path / "real.html.tmp").read_text() == "mine"
    os.mkfifo(pipe)
    read = tmp_path / "read"
    with read.open("wb") as file, subprocess.Popen(["cat", str(pipe)], stdout=file):
        write_report([run], pipe)
    assert read.read_text().startswith("<!doctype html>")
    assert pipe.is_fifo()
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    with pytest.raises(ConfigError, match="cannot be written: No space left"):
        write_report([run], full)
    assert full.is_symlink() and Path("/dev/full").is_char_device()
