"""How many rows of logits there are at a time; without torch, so that plans are quick to make."""

CHUNK_BYTES = 64 * 2**20
"""Of fp32 logits at a time: 128 rows of 128k tokens, and a small vocabulary's batch in one."""


def rows_within(vocabulary: int) -> int:
    """Rows of logits that are made at a time."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))
