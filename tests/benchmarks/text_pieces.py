"""Short pieces of a SQuAD file's paragraphs as JSON Lines, to see what a wire carries of any text.

    python tests/benchmarks/text_pieces.py xquad.en.json pieces.jsonl [--characters 56]

Each piece is a context of its own, of whole words; pieces of one article stay in one split. The
question on it is there only because a row has one.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

_LEAST = 30


def pieces(text: str, characters: int) -> Iterator[str]:
    """Whole words, as many as fit; what is left at the end where it is not too short."""
    piece = ""
    for word in text.split():
        if piece and len(piece) + 1 + len(word) > characters:
            yield piece
            piece = word
        else:
            piece = f"{piece} {word}".strip()
    if len(piece) > _LEAST:
        yield piece


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--characters", type=int, default=56)
    options = parser.parse_args()
    rows: dict[str, dict[str, object]] = {}
    for article in json.loads(options.source.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for piece in pieces(paragraph["context"], options.characters):
                rows.setdefault(
                    piece,
                    {
                        "title": article["title"],
                        "context": piece,
                        "question": "What is the first word?",
                        "answers": [piece.split()[0]],
                    },
                )
    lines = "".join(json.dumps(row) + "\n" for row in rows.values())
    options.target.write_text(lines, encoding="utf-8")
    print(f"{len(rows)} pieces in {options.target}")


if __name__ == "__main__":
    main()
