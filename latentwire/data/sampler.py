"""Sample order: which examples a step sees, as a function of seed, stage and position only."""

import random
from collections.abc import Sequence


class Sampler:
    """An endless, random-access order over (document, question) pairs.

    An epoch visits every example once. Questions on one document stay together in chunks of up to
    ``questions_per_context``, and chunks are shuffled, so that a batch encodes each of its contexts
    once. The order depends on (seed, stage, epoch) and on nothing of the ranks.

    Args:
        counts: examples of each document.
        samples: use only this many examples, from documents drawn by the seed; 0 uses all.
    """

    def __init__(
        self,
        counts: Sequence[int],
        *,
        seed: int,
        stage: str,
        questions_per_context: int,
        samples: int = 0,
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
        self._epoch = -1
        self._order: list[tuple[int, int]] = []

    def take(self, start: int, count: int) -> list[tuple[int, int]]:
        """(document, question) at global positions ``start`` to ``start + count``."""
        picked: list[tuple[int, int]] = []
        while len(picked) < count:
            epoch, offset = divmod(start + len(picked), self.num_examples)
            order = self._epoch_order(epoch)
            picked += order[offset : offset + count - len(picked)]
        return picked

    def among(self, start: int, count: int) -> list[tuple[int, int]]:
        """The different (document, question) that ``take`` gives for these positions, by document.

        Two epochs' length of positions holds a whole one, wherever it starts.
        """
        if count >= 2 * self.num_examples:
            start, count = 0, self.num_examples
        return sorted(set(self.take(start, count)))

    def _epoch_order(self, epoch: int) -> list[tuple[int, int]]:
        if epoch != self._epoch:
            rng = random.Random(f"{self._seed}/{epoch}")
            chunks = []
            for document, count in self._examples:
                questions = list(range(count))
                rng.shuffle(questions)
                for first in range(0, count, self._chunk):
                    chunks.append([(document, q) for q in questions[first : first + self._chunk]])
            rng.shuffle(chunks)
            self._order = [pair for chunk in chunks for pair in chunk]
            self._epoch = epoch
        return self._order
