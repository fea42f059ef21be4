"""What every reader makes of its rows: articles of documents, or everything that is wrong.

An article is what may not be divided between splits: an entry of a SQuAD file, all rows of one
title, or one row of HotpotQA. An article holds documents, a document the examples that share one
context. Identical contexts are one document wherever they stand, so no context reaches two splits.
"""

import logging
from dataclasses import dataclass

from latentwire.data.example import Example

log = logging.getLogger(__name__)

MAX_REPORTED = 5
"""Malformed places named one by one before the rest are only counted."""


class SourceError(ValueError):
    """A data source that cannot be used; ``problems`` has one message for each thing wrong."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, kw_only=True)
class Article:
    """The documents that stay together in one split."""

    key: str
    """Its title or id; its first context where it has none."""
    documents: tuple[tuple[Example, ...], ...]


class Collector:
    """Gathers examples by article and document, and the problems beside them.

    Args:
        where: the file or data set, as messages shall name it.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.problems: list[str] = []
        self.num_problems = 0
        self.num_unanswerable = 0
        self._documents: dict[str, list[Example]] = {}
        self._articles: dict[str, list[str]] = {}

    def problem(self, place: str, message: str) -> None:
        """One place is malformed; the first ``MAX_REPORTED`` are kept, all are counted."""
        self.num_problems += 1
        if self.num_problems <= MAX_REPORTED:
            self.problems.append(f"data.path: {self.where}{place}: {message}")

    def add(self, article: str | None, example: Example | None) -> None:
        """Files an example; None is a question without an answer, which is only counted."""
        if example is None:
            self.num_unanswerable += 1
            return
        if example.context not in self._documents:
            self._documents[example.context] = []
            self._articles.setdefault(article or example.context, []).append(example.context)
        self._documents[example.context].append(example)

    def articles(self) -> tuple[Article, ...]:
        """What was gathered, in the file's order; raises SourceError for any problem."""
        if self.num_problems > MAX_REPORTED:
            more = self.num_problems - MAX_REPORTED
            self.problems.append(f"data.path: {self.where}: ... and {more} more like these")
        if self.problems:
            raise SourceError(self.problems)
        skipped = f"{self.num_unanswerable} unanswerable questions were skipped"
        if not self._documents:
            raise SourceError([f"data.path: {self.where} holds no usable example ({skipped})"])
        if self.num_unanswerable:
            log.info("%s: %s", self.where, skipped)
        return tuple(
            Article(key=key, documents=tuple(tuple(self._documents[c]) for c in contexts))
            for key, contexts in self._articles.items()
        )
