"""The best checkpoint of a run by validation, and how long nothing better has come.

Every checkpoint holds the standing of its own step, so that a resumed run knows what an
uninterrupted one knew there. ``best.json`` beside the stages says the same to people and scripts.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from latentwire.checkpointing.commit import Step, problems, step_at
from latentwire.files import replace_json

FILE = "best.json"


@dataclass(frozen=True, kw_only=True)
class Best:
    """A validated step that no other one has beaten."""

    stage: str
    step: int
    score: float
    """Larger is better, and finite."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a run's validations have come to."""

    best: Best | None = None
    """Over the whole run; of equal scores the first."""
    stage: str | None = None
    """Stage of the last validation."""
    num_stale: int = 0
    """Validations of that stage since the last new best, its very first one left out."""

    def after(self, *, stage: str, step: int, score: float | None) -> "Standing":
        """The standing after one more validation.

        Args:
            score: larger is better; what is None or not finite is never a new best.
        """
        is_better = score is not None and (self.best is None or score > self.best.score)
        if score is not None and math.isfinite(score) and is_better:
            return Standing(best=Best(stage=stage, step=step, score=score), stage=stage)
        num_stale = self.num_stale + 1 if stage == self.stage else 0
        return replace(self, stage=stage, num_stale=num_stale)

    def is_exhausted(self, stage: str, *, patience: int) -> bool:
        """Whether ``stage`` ends here because nothing better came; never with patience 0."""
        return stage == self.stage and 0 < patience <= self.num_stale

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "Standing":
        """Out of what ``dataclasses.asdict`` made of one."""
        best = tree["best"]
        return cls(**{**tree, "best": None if best is None else Best(**best)})


def find(root: Path, best: Best) -> Step | None:
    """The published step that ``best`` names, None when it is gone.

    Raises:
        OSError: it cannot be read now.
    """
    step = step_at(root, best.stage, best.step)
    return None if problems(step) else step


def publish_best(root: Path, best: Best, *, metric: str) -> None:
    """Names ``best`` in ``best.json``; its step must be published already."""
    replace_json(root / FILE, asdict(best) | {"metric": metric})


def repair(root: Path, standing: Standing, *, metric: str) -> tuple[Standing, list[str]]:
    """Brings ``best.json`` and ``standing`` in line with the steps that there are.

    Args:
        standing: of the checkpoint that the run goes on from.

    Returns:
        The standing to go on with, and a message for everything that was mended.

    Raises:
        OSError: the best step cannot be read now.
    """
    path, messages = root / FILE, []
    if standing.best is not None and find(root, standing.best) is None:
        messages.append(
            f"the best checkpoint, stage {standing.best.stage} step {standing.best.step}, is gone; "
            "the next validation is the first to be the best"
        )
        standing = replace(standing, best=None)
    wanted = None if standing.best is None else asdict(standing.best) | {"metric": metric}
    if wanted == _read(path):
        return standing, messages
    if standing.best is not None:
        messages.append(
            f"{path} did not name the best checkpoint, stage {standing.best.stage} step "
            f"{standing.best.step}; it does now"
        )
        publish_best(root, standing.best, metric=metric)
    else:
        messages.append(
            f"{path} named a step that this run has not come to, or has no more; removed"
        )
        path.unlink()
    return standing, messages


def _read(path: Path) -> Any:
    """What the file holds; None without one, and an empty mapping for a damaged one."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
