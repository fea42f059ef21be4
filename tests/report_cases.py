"""A run's folder as Stage C leaves it, made by hand, with texts that break a careless page."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import stream_cases
import yaml

from latentwire import config_file
from latentwire.evaluation.metrics import Prediction, summarize

HOSTILE = "</script><script>window.hacked = 1</script><!-- <b>&amp; \u2028 ]]>"
ARMS = ("text", "latent", "no_context", "truncated_text", "wrong_wire", "zero_wire", "latent@10")
NUM_EXAMPLES = 30


def predictions(*, seed: int = 0) -> list[Prediction]:
    """Of two decoders: the text is right in most cases, the wire in many, a wrong wire never."""
    found = []
    for number in range(NUM_EXAMPLES):
        for decoder in stream_cases.DECODERS:
            for arm in ARMS:
                share = {"text": 9, "latent": 7 - seed, "latent@10": 5}.get(arm, 0)
                carries = arm.startswith("latent")
                found.append(
                    Prediction(
                        example=number,
                        document=number // 3,
                        decoder=decoder,
                        arm=arm,
                        kind="plain",
                        question=f"which {HOSTILE}?",
                        answers=("yes", "yes indeed"),
                        prediction="yes" if number % 10 < share else f"no {HOSTILE}",
                        nll_sum=1.0,
                        num_tokens=2,
                        first_correct=number % 10 < share,
                        first_in_top5=True,
                        context_tokens=100,
                        wire_positions=(10 if "@" in arm else 20) if carries else None,
                        wire_bytes=1000 if carries else None,
                        text_bytes=400,
                    )
                )
    return found


def write_run(folder: Path, rows: Iterable[dict[str, Any]] | None = None, *, seed: int = 0) -> Path:
    """A finished run with all of its files; returns its folder."""
    found = list(stream_cases.run_rows()) if rows is None else list(rows)
    stream_cases.write(folder / "diagnostics.jsonl", found)
    config = config_file.load("smoke", [f"run.tag={folder.name}", f"run.seed={seed}"])
    text = yaml.safe_dump(config_file.to_tree(config), sort_keys=False)
    (folder / "config.yaml").write_text("# python 3.11\n# torch 2.13\n# git abc\n" + text)
    status = {"state": "finished", "code": 0, "stage": "B", "step": 100, "reason": ""}
    (folder / "status.json").write_text(json.dumps(status))
    every = predictions(seed=seed)
    metrics = summarize(every, decoders=stream_cases.DECODERS, arms=ARMS)
    metrics |= {"checkpoint": {"stage": "B", "step": 100, "which": "last"}, "split": "test"}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    stream_cases.write(folder / "predictions.jsonl", [asdict(item) for item in every])
    examples = [
        {"example": number, "context": f"text {number} {HOSTILE}"} for number in range(NUM_EXAMPLES)
    ]
    stream_cases.write(folder / "examples.jsonl", examples)
    validations = [
        {
            "stage": stage,
            "step": 100,
            "metric": "em",
            "score": 0.5,
            "decoders": {name: {"em": 0.5, "f1": 0.6} for name in stream_cases.DECODERS},
        }
        for stage in "AB"
    ]
    stream_cases.write(folder / "validation.jsonl", validations)
    return folder
