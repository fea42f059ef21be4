"""Scores of predictions: SQuAD's exact match and F1, their intervals, and the tables of them."""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MIN_SCORE_GAP = 0.02
"""A normalised score is undefined where text beats no context by less than this."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_OF_LATENT = ("compression_tokens", "normalised_em", "normalised_f1")
"""What a decoder's summary repeats of its arm ``latent``."""
_RESAMPLED_AT_ONCE = 1 << 20
"""Values drawn in one piece by the bootstrap, which bounds its memory."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One example under one arm for one decoder."""

    example: int
    """Index in the evaluation set."""
    document: int
    """Which document it asks about, in order of first appearance."""
    decoder: str
    arm: str
    kind: str
    question: str
    answers: tuple[str, ...]
    prediction: str
    nll_sum: float
    """Negative log-likelihood of ``answers[0]`` with its EOS, natural log, summed."""
    num_tokens: int
    """Tokens of ``answers[0]``, EOS included."""
    first_correct: bool
    """The answer's first token is the most likely one."""
    first_in_top5: bool
    context_tokens: int | None = None
    """This decoder's tokens of what the encoder reads of the context: all, where it fits."""
    wire_positions: int | None = None
    """Positions the decoder reads for the wire, begin and end included."""
    wire_bytes: int | None = None
    text_bytes: int | None = None


def normalize(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no articles, single spaces."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 when the prediction equals any accepted answer after normalisation, else 0.0."""
    assert answers, "an example has at least one answer"
    return float(normalize(prediction) in {normalize(answer) for answer in answers})


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Token F1 in [0, 1] against the closest accepted answer; a repeated token counts each time."""
    assert answers, "an example has at least one answer"
    tokens = normalize(prediction).split()
    return max(_token_f1(tokens, normalize(answer).split()) for answer in answers)


def _token_f1(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    # 2PR / (P + R) with P = common / predicted and R = common / gold.
    common = (Counter(predicted) & Counter(gold)).total()
    return 2 * common / (len(predicted) + len(gold))


def bootstrap_ci95(
    values: Sequence[float],
    *,
    documents: Sequence[int] | None = None,
    seed: int = 0,
    num_resamples: int = 1000,
) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean, equal for equal inputs.

    Whole documents are resampled, each with all of its values: questions on one text succeed and
    fail together, and taken as independent they would promise too narrow an interval.

    Args:
        documents: the document of each value; None takes every value for one of its own.

    Raises:
        ValueError: there are no values.
    """
    if len(values) == 0:
        raise ValueError("a confidence interval needs at least one value")
    names = range(len(values)) if documents is None else documents
    _, member = np.unique(np.asarray(names), return_inverse=True)
    sums = np.bincount(member, weights=np.asarray(values, dtype=np.float64))
    counts = np.bincount(member)
    if len(sums) == 1:
        only = float(sums[0] / counts[0])
        return only, only
    rng = np.random.default_rng(seed)
    rows = max(1, _RESAMPLED_AT_ONCE // len(sums))
    means = np.empty(num_resamples)
    for start in range(0, num_resamples, rows):
        stop = min(start + rows, num_resamples)
        drawn = rng.integers(0, len(sums), size=(stop - start, len(sums)))
        means[start:stop] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def normalised_score(latent: float, no_context: float, text: float) -> float | None:
    """Which share of what the text gives the wire gives too: 0 is no context, 1 is the text.

    None where the text gives less than ``MIN_SCORE_GAP`` over no context.
    """
    gap = text - no_context
    return None if gap < MIN_SCORE_GAP else (latent - no_context) / gap


def arm_scores(predictions: Sequence[Prediction], *, seed: int = 0) -> dict[str, Any]:
    """The scores of one arm for one decoder, as plain JSON values.

    ``nll_per_token`` is weighted by tokens, in nats; None if a likelihood is not finite.
    ``em_by_kind`` is there only with more than one kind. ``num_distinct`` counts different
    predictions: few of them mean that the decoder does not read what it is given.
    """
    assert predictions, "an arm has at least one prediction"
    ordered = sorted(predictions, key=lambda prediction: prediction.example)
    em = [exact_match(item.prediction, item.answers) for item in ordered]
    overlap = [f1(item.prediction, item.answers) for item in ordered]
    first = [float(item.first_correct) for item in ordered]
    documents = [item.document for item in ordered]
    num_tokens = sum(item.num_tokens for item in ordered)
    assert num_tokens > 0, "every answer has at least its EOS"
    nll = math.fsum(item.nll_sum for item in ordered if math.isfinite(item.nll_sum)) / num_tokens
    finite = all(math.isfinite(item.nll_sum) for item in ordered)
    scores: dict[str, Any] = {
        "em": _mean(em),
        "em_ci95": list(bootstrap_ci95(em, documents=documents, seed=seed)),
        "f1": _mean(overlap),
        "f1_ci95": list(bootstrap_ci95(overlap, documents=documents, seed=seed)),
        "nll_per_token": nll if finite else None,
        "first_acc": _mean(first),
        "first_acc_ci95": list(bootstrap_ci95(first, documents=documents, seed=seed)),
        "first_acc_top5": _mean([float(item.first_in_top5) for item in ordered]),
        "num_examples": len(ordered),
        "num_distinct": len({item.prediction for item in ordered}),
    }
    compression = _compression(ordered)
    if compression is not None:
        scores["compression_tokens"] = compression
    by_kind: dict[str, list[float]] = {}
    for item, value in zip(ordered, em, strict=True):
        by_kind.setdefault(item.kind, []).append(value)
    if len(by_kind) > 1:
        scores["em_by_kind"] = {kind: _mean(by_kind[kind]) for kind in sorted(by_kind)}
    return scores


def summarize(
    predictions: Sequence[Prediction],
    *,
    decoders: Sequence[str],
    arms: Sequence[str],
    seed: int = 0,
) -> dict[str, Any]:
    """All scores of an evaluation, as plain JSON values; the order of predictions has no effect.

    What an arm that was not run would give (``latent``, ``text``, ``no_context``) is None.
    """
    cells: dict[tuple[str, str], dict[int, Prediction]] = {}
    for item in predictions:
        cell = cells.setdefault((item.decoder, item.arm), {})
        assert item.example not in cell, f"example {item.example} is twice in {item.arm}"
        cell[item.example] = item
    result: dict[str, Any] = {"decoders": {}}
    for decoder in decoders:
        scores = {
            arm: arm_scores(list(cells.get((decoder, arm), {}).values()), seed=seed) for arm in arms
        }
        for arm, scored in scores.items():
            if arm.partition("@")[0] == "latent":
                scored["normalised_em"] = _normalised(scored, scores, "em")
                scored["normalised_f1"] = _normalised(scored, scores, "f1")
        latent = scores.get("latent", {})
        result["decoders"][decoder] = {
            "arms": scores,
            **{key: latent.get(key) for key in _OF_LATENT},
        }
    # The wire and the text of an example are the same for every decoder.
    wire_bytes = {
        item.example: item.wire_bytes
        for item in predictions
        if item.arm == "latent" and item.wire_bytes is not None
    }
    text_bytes = {
        item.example: item.text_bytes
        for item in predictions
        if item.arm in ("latent", "text") and item.text_bytes is not None
    }
    result["wire_bytes"] = _mean(list(wire_bytes.values())) if wire_bytes else None
    result["text_bytes"] = _mean(list(text_bytes.values())) if text_bytes else None
    result["num_examples"] = len({item.example for item in predictions})
    return result


def _compression(latent: Sequence[Prediction]) -> float | None:
    ratios = [
        item.context_tokens / item.wire_positions
        for item in latent
        if item.context_tokens is not None and item.wire_positions
    ]
    return _mean(ratios) if ratios else None


def _normalised(
    latent: dict[str, Any], scores: dict[str, dict[str, Any]], metric: str
) -> float | None:
    """The score of ``latent`` between those of the arms ``no_context`` and ``text``."""
    if not {"no_context", "text"} <= scores.keys():
        return None
    return normalised_score(latent[metric], scores["no_context"][metric], scores["text"][metric])


def _mean(values: Sequence[float]) -> float:
    # fsum is exact, so no order of the values gives another last digit.
    return math.fsum(values) / len(values)
