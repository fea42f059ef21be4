"""The tables of a report: Stage C, health, ranks, what went wrong, configurations."""

import logging
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from latentwire.config import ConfigError, flatten
from latentwire.config_file import from_tree
from latentwire.diagnostics.reading import DropCount, reason_of
from latentwire.report.html import Html, element, join, table
from latentwire.report.run_data import RunData
from latentwire.report.series import RunSeries, is_number

log = logging.getLogger(__name__)

_SCORES = {
    "em": "EM",
    "em_ci95": "95 % interval",
    "f1": "F1",
    "nll_per_token": "NLL/token",
    "first_acc": "first",
    "first_acc_top5": "top 5",
    "normalised_em": "norm. EM",
    "compression_tokens": "compression",
}
_MAX_EVENTS = 50


def number(value: Any, digits: int = 3) -> str:
    """A number, an interval, or a dash where there is none."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(number(part, digits) for part in value)}]"
    if not is_number(value):
        return "–"
    if value != 0 and abs(value) < 10**-digits:
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


def results(runs: Sequence[RunData]) -> Html:
    """Stage C: one table a run and decoder, one line an arm."""
    found = []
    for run in runs:
        for decoder, scores in (run.metrics.get("decoders") or {}).items():
            name = decoder if len(runs) == 1 else f"{run.name}: {decoder}"
            arms = scores.get("arms", {})
            main = {arm: own for arm, own in arms.items() if "@" not in arm}
            further = {arm: own for arm, own in arms.items() if "@" in arm}
            parts = [_arms(run, decoder, main, caption=name)]
            if further:
                caption = f"{name} at further ratios"
                inner = _arms(run, decoder, further, caption=caption)
                parts.append(element("details", element("summary", caption), inner))
            found.append(element("div", *parts, _beside(run, scores)))
    if found:
        return element("div", *found)
    return element("p", "Stage C has not run.")


def _arms(run: RunData, decoder: str, arms: dict[str, Any], *, caption: str) -> Html:
    """One line an arm; cells say what they are, for scripts."""
    lines = []
    for arm, own in arms.items():
        cells = [
            element(
                "td",
                number(own.get(key), 2 if key == "compression_tokens" else 3),
                data_run=run.name,
                data_decoder=decoder,
                data_arm=arm,
                data_key=key,
            )
            for key in _SCORES
        ]
        lines.append([arm, *cells])
    return table(["arm", *_SCORES.values()], lines, caption=caption, is_numeric=True)


def _beside(run: RunData, scores: dict[str, Any]) -> Html:
    gist = scores.get("gist")
    parts = [
        f"{run.metrics.get('num_examples')} examples of the {run.metrics.get('split', '?')} split",
        f"wire {number(run.metrics.get('wire_bytes'), 0)} bytes at bf16, "
        f"text {number(run.metrics.get('text_bytes'), 0)} bytes",
    ]
    if gist:
        parts.append(
            f"gist NLL {number(gist.get('nll'))} a token, {number(gist.get('accuracy'))} right "
            f"(by frequency alone {number(gist.get('unigram_nll'))})"
        )
    if checkpoint := run.metrics.get("checkpoint"):
        parts.append(checkpoint_name(checkpoint))
    return element("p", "; ".join(parts) + ".", class_="note")


def checkpoint_name(checkpoint: Mapping[str, Any]) -> str:
    """What metrics are of, in words."""
    # Runs evaluated before there was a best one have the last.
    which, stage = checkpoint.get("which", "last"), checkpoint.get("stage")
    if stage is not None:
        return f"the {which} checkpoint: stage {stage} step {checkpoint.get('step')}"
    if which == "unsaved":
        return "the wire as it was trained, of which no step could be saved"
    return "the wire as it was made"


def comparison(runs: Sequence[RunData]) -> Html:
    """One line a run and decoder: the wire beside the text and the controls."""
    lines = []
    for run in runs:
        for decoder, scores in (run.metrics.get("decoders") or {}).items():
            arms = scores.get("arms", {})
            latent = arms.get("latent", {})
            others = ("text", "no_context", "truncated_text", "wrong_wire")
            lines.append(
                [
                    f"{run.name}: {decoder}",
                    number(latent.get("em")),
                    number(latent.get("em_ci95")),
                    *(number(arms.get(arm, {}).get("em")) for arm in others),
                    number(scores.get("normalised_em")),
                    number(scores.get("compression_tokens"), 2),
                ]
            )
    head = "run latent interval text no_context truncated_text wrong_wire normalised compression"
    return (
        table(head.split(), lines, caption="Exact match of the runs", is_numeric=True)
        if lines
        else Html("")
    )


def health(run: RunData, series: RunSeries) -> Html:
    """States of the decoders' wires, and what else happened."""
    return join([_strips(run, series), element("h4", "Events"), _events(run)])


def _strips(run: RunData, series: RunSeries) -> Html:
    """The state of each decoder's wire over the steps, and its changes as a list."""
    found = []
    for decoder in series.health:
        spells = _spells(run, series, decoder)
        if not spells:
            continue
        total = max(1, spells[-1]["stop"] - spells[0]["start"])
        parts = [
            element(
                "li",
                element("span", spell["state"]),
                class_=f"state {spell['state']}",
                style=f"flex-grow:{max(1, round(1000 * spell['length'] / total))}",
                title=f"{spell['state']} from {spell['from']}",
            )
            for spell in spells
        ]
        lines = [[s["from"], s["state"], s["reason"] or "–"] for s in spells]
        found.append(table(["from", "state", "reason"], lines, caption=f"Health of {decoder}"))
        found.append(element("ol", *parts, class_="strip", aria_label=f"health of {decoder}"))
    return join(found) if found else element("p", "This run has no health rows.")


def _spells(run: RunData, series: RunSeries, decoder: str) -> list[dict[str, Any]]:
    """Runs of equal state."""
    spells: list[dict[str, Any]] = []
    placed = [
        (x, row)
        for row in run.rows
        if row.get("kind") == "health" and str(row.get("decoder")) == decoder
        if (x := series.axis.at(row)) is not None
    ]
    for x, row in sorted(placed, key=lambda pair: pair[0]):
        state, reason = str(row.get("state", "unknown")), reason_of(row)
        if spells and spells[-1]["state"] == state:
            # Numbers in a reason change with every row; the newest is kept.
            spells[-1] |= {"stop": x, "reason": reason or spells[-1]["reason"]}
            continue
        if spells:
            spells[-1]["stop"] = x
        place = f"stage {row.get('stage')} step {row.get('step')}"
        spells.append({"state": state, "reason": reason, "from": place, "start": x, "stop": x})
    for spell in spells:
        spell["length"] = spell["stop"] - spell["start"]
    return spells


def ranks(series: RunSeries) -> Html:
    """How long the ranks take for a step, the slowest first."""
    seconds: dict[int, list[float]] = {}
    hosted: dict[int, list[str]] = {}
    for (decoder, rank), stream in series.streams.items():
        values = [v for v in stream.points("sec_per_step").values() if v is not None]
        seconds.setdefault(rank, []).extend(values)
        hosted.setdefault(rank, []).append(decoder)
    order = sorted((r for r in seconds if seconds[r]), key=lambda r: -median(seconds[r]))
    lines = [
        [f"rank {rank}", ", ".join(hosted[rank]), *(number(f(seconds[rank])) for f in _SPREAD)]
        for rank in order[:10]
    ]
    head = ["rank", "decoders", "least", "median", "greatest"]
    caption = "Seconds a step, slowest ranks first"
    if len(order) > 10:
        caption += f" (10 of {len(order)})"
    return table(head, lines, caption=caption) if lines else Html("")


_SPREAD = (min, median, max)


def _events(run: RunData) -> Html:
    """What was skipped, not finite, late, dropped or unhealthy."""
    found: list[str] = []
    skipped: dict[str, None] = {}
    num_late, dropped = 0, DropCount()
    for row in run.rows:
        place = f"stage {row.get('stage')} step {row.get('step')}"
        if row.get("skipped") is True:
            skipped[place] = None
        if row.get("nonfinite"):
            names = ", ".join(map(str, row["nonfinite"]))
            why = f" ({row['skip_reason']})" if row.get("skip_reason") else ""
            found.append(
                f"{place}, rank {row.get('rank', '–')}, {row.get('decoder')}: not finite: "
                f"{names}{why}"
            )
        num_late += row.get("late") is True
        dropped.add(row)
    head = []
    if skipped:
        places = ", ".join(list(skipped)[:10]) + (", …" if len(skipped) > 10 else "")
        head.append(f"skipped steps: {len(skipped)} ({places})")
    head += [f"late rows: {num_late}"] if num_late else []
    head += [f"dropped rows: {dropped.total}"] if dropped.total else []
    more = len(found) - _MAX_EVENTS
    lines = head + found[:_MAX_EVENTS] + ([f"and {more} more"] if more > 0 else [])
    if not lines:
        return element("p", "No step was skipped, and every value was finite.")
    return element("ul", *(element("li", line) for line in lines), class_="events")


def _flat(run: RunData) -> dict[str, Any]:
    """The configuration by key; empty where this version does not read it."""
    try:
        return flatten(from_tree(run.config)) if run.config else {}
    except ConfigError as error:
        log.warning("%s: its configuration is not compared: %s", run.name, error.problems[0])
        return {}


def configurations(runs: Sequence[RunData]) -> Html:
    """Keys in which the runs differ, then each configuration whole, with its environment."""
    found = []
    if len(runs) > 1:
        flats = [_flat(run) for run in runs]
        keys = [key for key in dict.fromkeys(k for flat in flats for k in flat)]
        lines = [
            [key, *(str(flat.get(key, "–")) for flat in flats)]
            for key in keys
            if len({str(flat.get(key)) for flat in flats}) > 1
        ]
        head = ["key", *(run.name for run in runs)]
        found.append(table(head, lines, caption="Keys in which the runs differ"))
    for run in runs:
        found.append(
            element(
                "details",
                element("summary", f"Configuration and environment of {run.name}"),
                element("h4", "Environment"),
                element("ul", *(element("li", item) for item in run.environment)),
                element("h4", "config.yaml"),
                element(
                    "pre",
                    run.config_text or "none recorded",
                    tabindex=0,
                    role="region",
                    aria_label=f"config.yaml of {run.name}",
                ),
                open=len(runs) == 1,
            )
        )
    return join(found)
