"""HotpotQA rows of either layout, ten paragraphs each."""

from typing import Any

NUM_PARAGRAPHS = 10
SUPPORT = (2, 7)
"""Which paragraphs hold the answer's support."""


def official(number: int, **changes: Any) -> dict[str, Any]:
    """One row as the official file has it; a change to None removes the key."""
    context = [
        [f"Page {number}.{i}", [f"First {number}.{i}.", f" Then {i}."]]
        for i in range(NUM_PARAGRAPHS)
    ]
    entry = {
        "_id": f"id{number}",
        "question": f"Question {number}?",
        "answer": "yes" if number % 2 else f"answer {number}",
        "type": "comparison" if number % 2 else "bridge",
        "level": "hard",
        # The later paragraph first, and one of its sentences twice.
        "supporting_facts": [[f"Page {number}.{i}", 0] for i in (*reversed(SUPPORT), SUPPORT[0])],
        "context": context,
        **changes,
    }
    return {key: value for key, value in entry.items() if value is not None}


def of_the_hub(number: int, **changes: Any) -> dict[str, Any]:
    """The same row with the hub's columns."""
    row = official(number)
    titles, sentences = zip(*row["context"], strict=True)
    facts, numbers = zip(*row["supporting_facts"], strict=True)
    entry = {
        **{key: row[key] for key in ("question", "answer", "type", "level")},
        "id": row["_id"],
        "supporting_facts": {"title": list(facts), "sent_id": list(numbers)},
        "context": {"title": list(titles), "sentences": list(sentences)},
        **changes,
    }
    return {key: value for key, value in entry.items() if value is not None}


def paragraph(number: int, place: int) -> str:
    return f"Page {number}.{place}: First {number}.{place}. Then {place}."
