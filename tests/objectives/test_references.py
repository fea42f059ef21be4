"""Gate 1: every objective equals a reference written by hand in plain float64 arithmetic."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from latentwire.objectives import alignment, distillation, reconstruction, tokens

Array = np.ndarray
Cast = Callable[[Tensor], Tensor]
"""To the precision that an objective is given."""

# Two answers, of 3 and 2 tokens, over a vocabulary of 7; three rows of 4 slots, of width 5.
RNG = np.random.default_rng(0)
LOGITS, TEACHER = RNG.normal(size=(2, 5, 7)).astype(np.float32).astype(np.float64) * 3
TARGETS, PLACE = [0, 3, 2, 6, 1], [0, 1, 2, 0, 1]
STUDENT_STATES, TEACHER_STATES = RNG.normal(size=(2, 3, 5, 6)).astype(np.float32).astype(float)
VECTORS = RNG.normal(size=(3, 4, 5)).astype(np.float32).astype(float)
TEXT_STATES = RNG.normal(size=(3, 6, 5)).astype(np.float32).astype(float)
# Latent 3 of row 0 and latents 0, 2 and 3 of row 1 stand for nothing; row 2 for nothing at all.
LATENT = [[-1, 0, 1, 1, 2, 2], [1, 1, 1, -1, -1, -1], [-1] * 6]
MASK = [[True, True, False, True], [False, True, False, False], [False] * 4]
EMBEDDINGS = (0.3 + RNG.normal(size=(7, 5))).astype(np.float32).astype(float)
GIST = [[0, 6, 2, 3], [5, 1, 1, 4], [0, 0, 0, 0]]
SCALE = 4.0


def log_softmax(row: Array) -> list[float]:
    total = math.log(sum(math.exp(value) for value in row))
    return [value - total for value in row]


def entropies() -> list[float]:
    return [-log_softmax(row)[target] for row, target in zip(LOGITS, TARGETS, strict=True)]


def divergence(temperature: float, positions: int) -> float:
    total = 0.0
    for own, other, place in zip(LOGITS, TEACHER, PLACE, strict=True):
        student, teacher = log_softmax(own / temperature), log_softmax(other / temperature)
        if place < positions:
            total += sum(math.exp(t) * (t - s) for s, t in zip(student, teacher, strict=True))
    return total * temperature**2


def cosine(left: Array, right: Array) -> float:
    lengths = math.sqrt(sum(x * x for x in left)) * math.sqrt(sum(x * x for x in right))
    return float(sum(x * y for x, y in zip(left, right, strict=True)) / lengths)


def state_distance() -> float:
    layers, positions = STUDENT_STATES.shape[:2]
    return sum(
        1 - cosine(STUDENT_STATES[layer, n], TEACHER_STATES[layer, n])
        for layer in range(layers)
        for n in range(positions)
    ) / float(layers)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def spans() -> list[float]:
    found: list[list[float]] = [[], [], []]
    for row, of in enumerate(LATENT):
        for slot in range(4):
            own = [TEXT_STATES[row, place] for place in range(6) if of[place] == slot]
            if own:
                found[row].append(1 - cosine(VECTORS[row, slot], sum(own) / len(own)))
    return [mean(row) for row in found]


def nearest_distances() -> list[float]:
    return [
        mean(
            [
                1 - max(cosine(vector, embedding) for embedding in EMBEDDINGS)
                for vector, real in zip(vectors, reals, strict=True)
                if real
            ]
        )
        for vectors, reals in zip(VECTORS, MASK, strict=True)
    ]


def statistics(rows: Array) -> tuple[list[float], list[float]]:
    means = [mean(list(column)) for column in rows.T]
    squares = [
        mean([(x - m) ** 2 for x in column]) for column, m in zip(rows.T, means, strict=True)
    ]
    return means, [math.sqrt(square) for square in squares]


def manifold_distances() -> list[float]:
    size = sum(x * x for x in EMBEDDINGS.flatten()) / len(EMBEDDINGS)
    wanted = [value for part in statistics(EMBEDDINGS) for value in part]
    found = []
    for vectors, reals in zip(VECTORS, MASK, strict=True):
        own = [value for part in statistics(vectors[reals]) for value in part]
        distance = sum((x - y) ** 2 for x, y in zip(own, wanted, strict=True))
        found.append(distance / size if any(reals) else 0.0)
    return found


def gist_entropies() -> list[float]:
    found = [0.0, 0.0, 0.0]
    for row in range(3):
        for slot in range(4):
            if MASK[row][slot]:
                logits = [SCALE * cosine(VECTORS[row, slot], e) for e in EMBEDDINGS]
                found[row] -= log_softmax(np.array(logits))[GIST[row][slot]]
    return found


def scored(distribution: list[float]) -> list[float]:
    return [
        sum(-math.log(distribution[token]) for token, real in zip(row, reals, strict=True) if real)
        for row, reals in zip(GIST, MASK, strict=True)
    ]


COUNTS = [3, 0, 1, 0, 0, 9, 2]


def mean_embedding_distribution() -> list[float]:
    average = sum(count * row for count, row in zip(COUNTS, EMBEDDINGS, strict=True)) / 15
    logits = np.array([SCALE * cosine(average, row) for row in EMBEDDINGS])
    return [math.exp(value) for value in log_softmax(logits)]


def losses(of: Cast) -> Tensor:
    return tokens.token_losses(tensor(LOGITS, of), torch.tensor(TARGETS))


def tensor(values: Array, of: Cast) -> Tensor:
    return of(torch.tensor(values))


def kd(of: Cast, temperature: float, positions: int) -> Tensor:
    return distillation.kd(
        tensor(LOGITS, of),
        tensor(TEACHER, of),
        temperature=temperature,
        place=torch.tensor(PLACE),
        positions=positions,
    )


def gist(of: Cast, chunk: int) -> Tensor:
    return reconstruction.gist(
        tensor(VECTORS, of),
        torch.tensor(GIST),
        torch.tensor(MASK),
        tensor(EMBEDDINGS, of),
        of(torch.tensor(SCALE)),
        chunk=chunk,
    )[0]


def latent_align(of: Cast, chunk: int) -> Tensor:
    vectors, embeddings = tensor(VECTORS, of), tensor(EMBEDDINGS, of)
    return alignment.latent_align(vectors, torch.tensor(MASK), embeddings, chunk=chunk)


def manifold(of: Cast) -> Tensor:
    found = alignment.embedding_statistics(tensor(EMBEDDINGS, of), chunk=3)
    return alignment.manifold(tensor(VECTORS, of), torch.tensor(MASK), *found)


PLACES = torch.tensor(PLACE)
NAMED: dict[str, tuple[Callable[[Cast], Tensor], float | list[float]]] = {
    "token_losses": (losses, entropies()),
    "tf": (lambda of: tokens.tf(losses(of)), sum(entropies())),
    "ae": (lambda of: reconstruction.ae(losses(of)), sum(entropies())),
    "continuation": (lambda of: reconstruction.continuation(losses(of)), sum(entropies())),
    "first": (
        lambda of: tokens.first(losses(of), PLACES),
        entropies()[0] + entropies()[3],
    ),
    "kce-1": (
        lambda of: tokens.kce(losses(of), PLACES, k=1),
        entropies()[0] + entropies()[3],
    ),
    "kce-2": (
        lambda of: tokens.kce(losses(of), PLACES, k=2),
        sum(entropies()) - entropies()[2],
    ),
    "kce-9": (lambda of: tokens.kce(losses(of), PLACES, k=9), sum(entropies())),
    "kd": (lambda of: kd(of, 1.0, 0), divergence(1.0, 9)),
    "kd-hot": (lambda of: kd(of, 2.5, 0), divergence(2.5, 9)),
    "kd-cold": (lambda of: kd(of, 0.5, 0), divergence(0.5, 9)),
    "kd-first-1": (lambda of: kd(of, 1.0, 1), divergence(1.0, 1)),
    "kd-first-2-hot": (lambda of: kd(of, 2.5, 2), divergence(2.5, 2)),
    "state": (
        lambda of: distillation.state(tensor(STUDENT_STATES, of), tensor(TEACHER_STATES, of)),
        state_distance(),
    ),
    "span": (
        lambda of: alignment.span(
            tensor(VECTORS, of), tensor(TEXT_STATES, of), torch.tensor(LATENT)
        ),
        spans(),
    ),
    "latent_align": (lambda of: latent_align(of, 100), nearest_distances()),
    "latent_align-chunks": (lambda of: latent_align(of, 3), nearest_distances()),
    "manifold": (manifold, manifold_distances()),
    "scale_l2": (
        lambda of: alignment.scale_l2(of(torch.tensor([0.3], dtype=torch.float64)), 1.5),
        (math.exp(0.3) / 1.5 - 1) ** 2,
    ),
    "gist": (lambda of: gist(of, 100), gist_entropies()),
    "gist-chunks": (lambda of: gist(of, 3), gist_entropies()),
    "unigram_nll": (
        lambda of: reconstruction.unigram_nll(
            torch.tensor(COUNTS), torch.tensor(GIST), torch.tensor(MASK), smoothing=0.5
        ),
        scored([(count + 0.5) / (15 + 3.5) for count in COUNTS]),
    ),
    "mean_embedding_nll": (
        lambda of: reconstruction.mean_embedding_nll(
            torch.tensor(COUNTS),
            torch.tensor(GIST),
            torch.tensor(MASK),
            tensor(EMBEDDINGS, of),
            of(torch.tensor(SCALE)),
        ),
        scored(mean_embedding_distribution()),
    ),
}


@pytest.mark.parametrize("of", [Tensor.float, Tensor.double], ids=["fp32", "fp64"])
@pytest.mark.parametrize("name", NAMED)
def test_objective_equals_its_reference(name: str, of: Cast) -> None:
    found, expected = NAMED[name]
    assert found(of).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", sorted(set(NAMED) - {"unigram_nll"}))
def test_objective_of_half_precision_is_taken_in_float(name: str) -> None:
    found, _ = NAMED[name]
    half, exact = found(Tensor.bfloat16), found(lambda values: values.bfloat16().float())
    assert half.dtype == exact.dtype
    assert half.tolist() == pytest.approx(exact.tolist(), rel=1e-6, abs=1e-6)
