"""The unit of data: a context, a question about it, and its accepted answers."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Example:
    """One (context, question, answers); ``answers[0]`` is the one trained on."""

    context: str
    question: str
    answers: tuple[str, ...]
    kind: str = "plain"
    """A label of the source's own; results are also reported by kind."""
