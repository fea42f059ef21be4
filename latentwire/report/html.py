"""HTML as text: whatever is not marked as HTML is escaped."""

import json
from collections.abc import Iterable
from html import escape
from typing import Any


class Html(str):
    """Text that is HTML already."""


def element(tag: str, *children: str | Html | None, **attributes: str | int | bool | None) -> Html:
    """An element with its children; None among them is left out.

    Args:
        attributes: ``class_`` is ``class``, other underscores are dashes; True is an attribute
            without a value, False and None are none.
    """
    given = ""
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        given += f" {name}" if value is True else f' {name}="{escape(str(value))}"'
    inner = "".join(escaped(child) for child in children if child is not None)
    return Html(f"<{tag}{given}>{inner}</{tag}>")


def escaped(text: str | Html) -> Html:
    """The text as HTML; what is HTML stays."""
    return text if isinstance(text, Html) else Html(escape(text))


def join(parts: Iterable[str | Html]) -> Html:
    """Parts one behind the other."""
    return Html("".join(escaped(part) for part in parts))


def script_json(value: Any) -> Html:
    """JSON that may stand inside a script element, whatever texts it holds.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Html(text)


def table(
    head: Iterable[str | Html],
    rows: Iterable[Iterable[str | Html]],
    *,
    caption: str,
    is_numeric: bool = False,
) -> Html:
    """A table that scrolls by itself where it is too wide. The first cell of a row is its head.

    Cells that are ``Html`` and start with ``<td`` are whole cells already.

    Args:
        is_numeric: all cells but the first hold numbers.
    """
    lines = []
    for row in rows:
        first, *others = row
        cells = [element("th", first, scope="row"), *(_cell(other) for other in others)]
        lines.append(element("tr", *cells))
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", *(element("th", name, scope="col") for name in head))),
            element("tbody", *lines),
            class_="numeric" if is_numeric else None,
        ),
        class_="wide",
        tabindex=0,
        role="region",
        aria_label=caption,
    )


def _cell(content: str | Html) -> Html:
    if isinstance(content, Html) and content.startswith("<td"):
        return content
    return element("td", content)
