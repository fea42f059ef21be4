"""Examples of Stage C: what each decoder answered from the text, the wire, and a wrong wire."""

from collections.abc import Mapping

from latentwire.diagnostics.reading import Row
from latentwire.evaluation.metrics import exact_match
from latentwire.report.html import Html, element, join, table
from latentwire.report.run_data import RunData

SPREAD = 12
"""Cards spread evenly over the evaluated examples."""
LOST = 12
"""Most cards of further examples that a decoder answers from the text and not from the wire."""
_FIRST = ("text", "latent", "wrong_wire", "no_context", "truncated_text", "zero_wire")


def cards(run: RunData) -> Html:
    """The cards of one run, with a choice of which are shown."""
    examples: dict[int, dict[tuple[str, str], Row]] = {}
    for row in run.predictions:
        if row["answers"]:
            key = (str(row.get("decoder")), str(row.get("arm")))
            examples.setdefault(row["example"], {})[key] = row
    if not examples:
        return element("p", "This run has no predictions.")
    chosen = choose(examples)
    lost = sum(_is_lost(examples[number]) for number in chosen)
    note = (
        f"{len(chosen)} of {len(examples)} examples: up to {SPREAD} spread evenly, and up to "
        f"{LOST} more in which a decoder is right with the text and wrong with the wire."
    )
    return join(
        [
            element("p", note, class_="note"),
            element(
                "label",
                "Show ",
                element(
                    "select",
                    element("option", f"all {len(chosen)}", value="all"),
                    element("option", f"right with text, wrong with wire ({lost})", value="lost"),
                    class_="card-filter",
                ),
            ),
            element("div", *(_card(run, n, examples[n]) for n in chosen), class_="cards"),
        ]
    )


def choose(examples: Mapping[int, Mapping[tuple[str, str], Row]]) -> list[int]:
    """Numbers of the examples that get a card, in their order."""
    order = sorted(examples)
    spread = {order[i * len(order) // SPREAD] for i in range(min(SPREAD, len(order)))}
    if len(order) <= SPREAD:
        spread = set(order)
    lost = [n for n in order if n not in spread and _is_lost(examples[n])][:LOST]
    return sorted(spread | set(lost))


def is_right(row: Row) -> bool:
    """Exact match, as Stage C counts it."""
    return exact_match(str(row.get("prediction", "")), [str(a) for a in row["answers"]]) == 1.0


def _is_lost(answers: Mapping[tuple[str, str], Row]) -> bool:
    return any(
        arm == "text" and is_right(row) and not is_right(answers[decoder, "latent"])
        for (decoder, arm), row in answers.items()
        if (decoder, "latent") in answers
    )


def _card(run: RunData, number: int, answers: Mapping[tuple[str, str], Row]) -> Html:
    first: Row = next(iter(answers.values()))
    decoders = list(dict.fromkeys(decoder for decoder, _ in answers))
    arms = list(dict.fromkeys(arm for _, arm in answers))
    arms.sort(key=lambda arm: _FIRST.index(arm) if arm in _FIRST else len(_FIRST))
    lines = [
        [arm, *(_answer(answers.get((decoder, arm))) for decoder in decoders)]
        for arm in arms
        if arm in _FIRST or arm.startswith("latent")
    ]
    context = run.contexts.get(number)
    return element(
        "article",
        element("h4", f"Example {number}", element("small", f" {first.get('kind', '')}")),
        element(
            "blockquote",
            context if context is not None else "The context was not recorded by this run.",
            tabindex=0,
            role="region",
            aria_label=f"context of example {number}",
        ),
        element("p", element("b", "Question: "), str(first.get("question", ""))),
        element("p", element("b", "Gold: "), " | ".join(map(str, first["answers"]))),
        table(["arm", *decoders], lines, caption=f"Answers to example {number}"),
        class_="card lost" if _is_lost(answers) else "card",
        data_example=number,
    )


def _answer(row: Row | None) -> Html:
    if row is None:
        return element("td", "–")
    right = is_right(row)
    mark = element("span", "✓ " if right else "✗ ", aria_hidden="true")
    said = element("span", "right: " if right else "wrong: ", class_="unseen")
    text = str(row.get("prediction", "")) or "(nothing)"
    return element("td", mark, said, text, class_="right" if right else "wrong")
