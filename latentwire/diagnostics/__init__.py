"""What a run tells of itself while it trains, and how that is read."""

from latentwire.diagnostics.reading import Tail, follow, read, rows

__all__ = ["Tail", "follow", "read", "rows"]
