"""Sample order: which examples a step sees, as a function of seed, stage and position only."""

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from latentwire.data.buckets import dealt, windows

Chunk = list[tuple[int, int]]
"""Questions on one document: (document, question)."""


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """How examples are dealt into batches of alike lengths."""

    length: Callable[[int], int]
    """Of a document's text, in any unit."""
    batch_size: int
    """Examples of a global batch."""
    num_batches: int
    """Batches in whose reach texts are sorted."""


class Sampler:
    """An endless, random-access order over (document, question) pairs.

    An epoch visits every example once. Questions on one document stay together in chunks of up to
    ``questions_per_context``, and chunks are shuffled, so that a batch encodes each of its contexts
    once. The order depends on (seed, stage, epoch) and on nothing of the ranks.

    Args:
        counts: examples of each document.
        samples: use only this many examples, from documents drawn by the seed; 0 uses all.
        buckets: batches hold texts of alike lengths; None deals them as they come.
    """

    def __init__(
        self,
        counts: Sequence[int],
        *,
        seed: int,
        stage: str,
        questions_per_context: int,
        samples: int = 0,
        buckets: Buckets | None = None,
    ) -> None:
        self._seed = f"{seed}/{stage}"
        self._chunk = questions_per_context
        documents = list(range(len(counts)))
        if samples:
            # Drawn alike in every stage; where one uses fewer, they are among the other's.
            random.Random(f"{seed}/subset").shuffle(documents)
        self._examples: list[tuple[int, int]] = []
        left = samples or sum(counts)
        for document in documents:
            take = min(counts[document], left)
            if take:
                self._examples.append((document, take))
            left -= take
        self.num_examples = sum(count for _, count in self._examples)
        self._buckets = buckets
        self._epoch = -1
        self._windows: list[list[Chunk]] = []
        """Of the epoch: runs of chunks; without buckets there is one."""
        self._starts: list[int] = []
        """Where in the epoch each of them begins."""
        self._dealt: tuple[int, Chunk] = (-1, [])
        """The window that was dealt last, and its examples."""

    def take(self, start: int, count: int) -> list[tuple[int, int]]:
        """(document, question) at global positions ``start`` to ``start + count``."""
        picked: list[tuple[int, int]] = []
        while len(picked) < count:
            epoch, offset = divmod(start + len(picked), self.num_examples)
            self._enter(epoch)
            window = bisect_right(self._starts, offset) - 1
            first = offset - self._starts[window]
            picked += self._window(window)[first : first + count - len(picked)]
        return picked

    def among(self, start: int, count: int) -> list[tuple[int, int]]:
        """The different (document, question) that ``take`` gives for these positions, by document.

        Two epochs' length of positions holds a whole one, wherever it starts.
        """
        if count >= 2 * self.num_examples:
            start, count = 0, self.num_examples
        return sorted(set(self.take(start, count)))

    def _enter(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        rng = random.Random(f"{self._seed}/{epoch}")
        chunks = []
        for document, count in self._examples:
            questions = list(range(count))
            rng.shuffle(questions)
            for first in range(0, count, self._chunk):
                chunks.append([(document, q) for q in questions[first : first + self._chunk]])
        rng.shuffle(chunks)
        buckets = self._buckets
        reach = buckets.batch_size * buckets.num_batches if buckets else self.num_examples
        self._windows = windows(chunks, reach)
        sizes = [sum(map(len, window)) for window in self._windows]
        self._starts = list(accumulate(sizes[:-1], initial=0))
        self._epoch, self._dealt = epoch, (-1, [])

    def _window(self, number: int) -> Chunk:
        """The examples of a window of the epoch, in their order."""
        if self._dealt[0] != number:
            chunks, buckets = self._windows[number], self._buckets
            if buckets is not None:
                # Texts are looked at when their window comes, not all at once.
                chunks = dealt(
                    chunks,
                    lambda chunk: buckets.length(chunk[0][0]),
                    batch_size=buckets.batch_size,
                    offset=self._epoch * self.num_examples + self._starts[number],
                    rng=random.Random(f"{self._seed}/{self._epoch}/{number}"),
                )
            self._dealt = (number, [pair for chunk in chunks for pair in chunk])
        return self._dealt[1]
