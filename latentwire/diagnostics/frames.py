"""How a diagnostics row travels from its rank to rank 0: one line, a header and the row's JSON.

The header holds all that ordering needs, so that rank 0 never parses a row.
"""

import json
from dataclasses import dataclass
from typing import Any

from latentwire.diagnostics.stream import encodable

STAGE_ORDER = {"A": 0, "B": 1}
KIND_ORDER = {"step": 0, "health": 1}
MAX_LINE = 1 << 20
"""Bytes of a frame; what sends more is no rank of ours."""
MAX_GREETING = 256

Place = tuple[int, int, int]
"""(stage, step, kind): where in the stream a row stands."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One row on its way."""

    seq: int
    """Number of the row among those its rank sends, from 1; dropped ones have none."""
    dropped: int
    """Rows that its rank has dropped so far."""
    place: Place
    rank: int
    decoder: str
    seconds: float = 0.0
    """Of the step; 0 where the row is of none."""
    row: bytes
    """JSON, one object, no line end."""

    def encoded(self) -> bytes:
        stage, step, kind = self.place
        head = (self.seq, self.dropped, stage, step, kind, self.rank, self.seconds, self.decoder)
        return "\t".join(map(str, head)).encode() + b"\t" + self.row + b"\n"

    def line(self, *, late: bool) -> bytes:
        """The row as the file has it."""
        more = f', "dropped": {self.dropped}' + (', "late": true' if late else "")
        return self.row[:-1] + more.encode() + b"}\n"


def decoded(line: bytes) -> Frame:
    """The frame of a line without its end.

    Raises:
        ValueError: it is none.
    """
    *head, seconds, decoder, row = line.split(b"\t", 8)
    seq, dropped, stage, step, kind, rank = map(int, head)
    if not (row.startswith(b"{") and row.endswith(b"}")):
        raise ValueError("a frame holds no JSON object")
    return Frame(
        seq=seq,
        dropped=dropped,
        place=(stage, step, kind),
        rank=rank,
        seconds=float(seconds),
        decoder=decoder.decode(),
        row=row,
    )


def place_of(row: dict[str, Any]) -> Place:
    return STAGE_ORDER[row["stage"]], row["step"], KIND_ORDER[row["kind"]]


def has_norms(row: dict[str, Any]) -> bool:
    """Whether a row must be kept longest: it holds objectives' gradient norms, or the health."""
    if row["kind"] != "step":
        return True
    return any(key.startswith("grad_") and not key.startswith("grad_norm") for key in row)


def row_json(row: dict[str, Any]) -> bytes:
    """Valid JSON of a row, whatever its numbers are."""
    return json.dumps(encodable(row), allow_nan=False).encode()
