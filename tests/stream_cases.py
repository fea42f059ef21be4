"""Rows as a run of several ranks writes them, made by hand, for the tests of what reads them."""

import json
import math
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
UNITS = ("encoder", "adapter", "deep_prefix")
DECODERS = ("one", "two")


def step_row(stage: str, step: int, rank: int, decoder: str, **more: Any) -> dict[str, Any]:
    """A row of one step, on the rank and decoder given."""
    at = step + (100 if stage == "B" else 0)
    fall = math.exp(-at / 80)
    row: dict[str, Any] = {
        "schema": 2,
        "kind": "step",
        "run": "test",
        "time": (START + timedelta(seconds=0.5 * at)).isoformat(),
        "stage": stage,
        "step": step,
        "rank": rank,
        "decoder": decoder,
        "mode": "latent",
        "tf": fall + 0.1 * DECODERS.index(decoder),
        "first": 2 * fall,
        "kce": None,
        "kd": 0.5 * fall,
        "first_acc": 1 - fall,
        "tf_local": fall + 0.01 * rank,
        "num_tokens_local": 100,
        "keep_prob": 1.0,
        "K": 4,
        "grad_norm": 3 * fall,
        "skipped": False,
        "weight_tf": 1.0,
        "lr_encoder": 1e-3,
        "num_examples": 24,
        "sec_per_step": 0.4 + 0.1 * rank,
        "data_seconds": 0.01,
        "save_seconds": 0.0,
        "peak_memory_bytes": 1 << 30,
        "dropped": 0,
    }
    for unit in UNITS:
        row[f"grad_norm/{unit}"] = fall
    if step % 10 == 0:
        for name in ("tf", "first", "kd"):
            row[f"grad_{name}"] = fall * (1 + rank)
            for unit in UNITS:
                row[f"grad_{name}/{unit}"] = 0.1 * fall
    return row | more


def health_row(stage: str, step: int, decoder: str, **more: Any) -> dict[str, Any]:
    """A row of one decoder's health."""
    at = step + (100 if stage == "B" else 0)
    return {
        "schema": 2,
        "kind": "health",
        "run": "test",
        "time": (START + timedelta(seconds=0.5 * at)).isoformat(),
        "stage": stage,
        "step": step,
        "rank": 0,
        "decoder": decoder,
        "dropped": 0,
        "num_examples": 24,
        "nll_right": 1.0,
        "nll_wrong": 1.0 + at / 200,
        "right_minus_wrong": -at / 200,
        "wire_rank": 5.0 + at / 50,
        "wire_cosine": 0.3,
        "wire_rms_ratio": 1.0,
        "prediction_diversity": 0.9,
        "kl_teacher": 0.4,
        "teacher_nll": 0.1,
        "update_ratio/encoder": 1e-3,
        "state": "warming" if at < 60 else "alive",
        "reasons": [],
        "slowest_ranks": [{"rank": 1, "step_seconds": 0.5}],
    } | more


def run_rows(
    *, steps: int = 100, every: int = 5, ranks: int = 4, health: int = 20
) -> Iterator[dict[str, Any]]:
    """Both stages of a run whose ranks share the decoders out in turn."""
    for stage in "AB":
        for step in range(every, steps + 1, every):
            for rank in range(ranks):
                yield step_row(stage, step, rank, DECODERS[rank % 2])
            if step % health == 0:
                yield from (health_row(stage, step, decoder) for decoder in DECODERS)


def write(path: Path, found: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> Path:
    """A diagnostics file with these rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path
