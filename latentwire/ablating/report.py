"""An ablation as Markdown and plots, made of its results alone."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from latentwire.ablating.file import Ablation
from latentwire.ablating.plots import against_compression, differences, learning_curves
from latentwire.ablating.results import RESULTS, Result
from latentwire.ablating.scores import Scores, scores_of
from latentwire.evaluation.arms import ratio_of
from latentwire.files import publish
from latentwire.sweep_table import markdown

REPORT, PICTURE = "ABLATIONS.md", "ablations.svg"
COMPRESSION = "compression.svg"
_NONE = "-"
_CONTROLS = ("text", "truncated_text", "no_context", "wrong_wire", "zero_wire")


def write_report(folder: Path, ablation: Ablation, results: Mapping[str, Result]) -> str:
    """Writes the report with its plots, each file replaced as a whole.

    Args:
        results: by trial, those of the ablation as it is now.

    Returns:
        The table of all rows as text.
    """
    every = scores_of(ablation, results)
    default = every[0]
    table = _table(every, default)
    lines = _opening(ablation, default)
    files = {PICTURE: differences(every, default)}
    for part in dict.fromkeys(scores.row.part for scores in every):
        rows = [scores for scores in every if scores.row.part == part]
        known = [scores for scores in rows if scores.results]
        if not known:
            continue
        lines += [f"## {part.capitalize()}", "", _table(rows, default), ""]
        lines += [
            f"- `{scores.row.name}`: {scores.row.learned}" for scores in rows if scores.row.learned
        ]
        if default.results and any(scores is not default for scores in known):
            name = f"ablations-{part.replace(' ', '_')}.svg"
            compared = [default, *(scores for scores in known if scores is not default)]
            files[name] = learning_curves(part, compared)
            lines += ["", f"![learning curves: {part}]({name})"]
        lines.append("")
    lines += _by_decoder([scores for scores in every if len(scores.results) > 1])
    if default.results:
        files[COMPRESSION] = against_compression(default)
        lines += _controls(default)
    files[REPORT] = "\n".join(lines).rstrip() + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        publish(folder / name, text.encode(), durably=False)
    return table


def _opening(ablation: Ablation, default: Scores) -> list[str]:
    lines = [
        f"# {ablation.title}",
        "",
        f"Written by `latentwire ablate` from `{RESULTS}`; nothing here was typed but the lines on "
        "what was learned. Each row changes the default in one respect: recipe "
        f"`{ablation.base}` with",
        "",
        "```",
        *ablation.overrides,
        "```",
        "",
    ]
    if default.results:
        first = default.results[0]
        lines += [
            f"{first.num_steps} steps of one process. A column is exact match at one compression "
            "(tokens of text over positions read, in the default; the mean of the decoders) on "
            f"{sum(first.asked)} questions about {len(first.asked)} held-out documents; `mean EM` "
            "is the mean of the columns that a row has, with the 95 % interval over documents. "
            "`against the default` pairs documents and seeds, over what both rows have; "
            "`wrong wire` reads the wires of other documents. Reading the text itself: "
            f"{default.mean_em('text'):.3f}. Intervals are over documents: of a row with one seed "
            "they leave out what another seed would have changed. `s/step` also depends on what "
            "else the machine did.",
            "",
        ]
    if len(default.results) > 1:
        means = [result.mean_em("latent") for result in default.results]
        lines += [
            f"The default's seeds give {', '.join(f'{mean:.3f}' for mean in means)}: a single "
            f"seed's difference below {max(means) - min(means):.3f} says little.",
            "",
        ]
    return [*lines, f"![differences from the default]({PICTURE})", ""]


def _arms(rows: Sequence[Scores]) -> list[str]:
    """The wires that any row has, the shortest last."""
    names = {arm: None for scores in rows for arm in scores.wires}
    return sorted(names, key=lambda name: ratio_of(name) or 0)


def _title(arm: str, default: Scores) -> str:
    ratio, compression = ratio_of(arm), default.compression(arm)
    if compression is not None:
        return f"{compression:.1f}x"
    return "fixed length" if ratio is None else f"ratio {ratio}"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3f}"


def _table(rows: Sequence[Scores], default: Scores) -> str:
    arms = _arms([default, *rows])
    header = ["row", "change", "seeds", *(_title(arm, default) for arm in arms)]
    header += ["mean EM", "95 % interval", "against the default", "wrong wire", "s/step"]
    cells = []
    for scores in rows:
        row, found = scores.row, scores.results
        start = [row.name, "<br>".join(row.change) or _NONE, str(len(found))]
        if not found:
            cells.append(start + [_NONE] * (len(header) - len(start)))
            continue
        low, high = scores.interval()
        difference = None if scores.row is default.row else scores.against(default)
        seconds = statistics.fmean(result.seconds_per_step for result in found)
        cells.append(
            [
                *start,
                *(_number(scores.em(arm)) for arm in arms),
                _number(scores.mean_em("latent")),
                f"{low:.3f} to {high:.3f}",
                _NONE if difference is None else str(difference),
                _number(scores.mean_em("wrong_wire")),
                _number(seconds),
            ]
        )
    return markdown(header, cells)


def _by_decoder(rows: Sequence[Scores]) -> list[str]:
    """Normalised exact match of every decoder at every ratio; no lines without rows."""
    if not rows:
        return []
    arms = _arms(rows)
    header = ["row", "decoder", *(_title(arm, rows[0]) for arm in arms)]
    cells = [
        [
            scores.row.name,
            decoder,
            *(_spread(scores.normalised(decoder, arm)) for arm in arms),
        ]
        for scores in rows
        for decoder in scores.decoders
    ]
    return [
        "## By decoder, over seeds",
        "",
        "Normalised exact match, (wire - no context) / (text - no context): the mean over seeds, "
        "and the least and the most of them.",
        "",
        markdown(header, cells),
        "",
    ]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return _NONE
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _of_kind(default: Scores, decoder: str, arm: str, kind: str) -> float | None:
    """Over the seeds that drew such a question; None where none did."""
    seeds = [result.by_kind.get(decoder, {}).get(arm, {}) for result in default.results]
    values = [by_kind[kind] for by_kind in seeds if kind in by_kind]
    return statistics.fmean(values) if values else None


def _controls(default: Scores) -> list[str]:
    """Every arm of the default, by decoder and ratio, and by kind of question where there are
    several."""
    header = ["decoder", "compression", "wire", *(name.replace("_", " ") for name in _CONTROLS)]
    kinds = sorted(
        {
            kind
            for result in default.results
            for arms in result.by_kind.values()
            for by_kind in arms.values()
            for kind in by_kind
        }
    )
    header += [f"{what}, {kind}" for kind in kinds for what in ("wire", "text")]
    cells = []
    for decoder in default.decoders:
        for arm in default.wires:
            ratio = ratio_of(arm)
            compression = default.compression_of(decoder, arm)
            line = [decoder, f"{compression:.2f}x", _of(default, decoder, arm)]
            line += [_of(default, decoder, name, ratio) for name in _CONTROLS]
            line += [
                _number(_of_kind(default, decoder, name, kind))
                for kind in kinds
                for name in (arm, "text")
            ]
            cells.append(line)
    return [
        "## The default beside its controls",
        "",
        "Exact match, the mean over seeds. Truncated text is as long as the wire; what stands "
        "after a comma is a kind of question.",
        "",
        markdown(header, cells),
        "",
        f"![the default beside its controls]({COMPRESSION})",
        "",
    ]


def _of(scores: Scores, decoder: str, name: str, ratio: int | None = None) -> str:
    """Exact match of an arm, of its variant for ``ratio`` where there is one."""
    return _number(scores.em_of(decoder, name, ratio))
