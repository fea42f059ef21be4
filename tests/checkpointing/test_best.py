"""The best checkpoint: how validations add up, and the file that names it."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from test_commit import publish

from latentwire.checkpointing import best
from latentwire.checkpointing.best import Best, Standing, publish_best, repair
from latentwire.checkpointing.commit import newest
from latentwire.checkpointing.state import Place, place_from

NAN = float("nan")


def standings(*validations: tuple[str, float | None]) -> list[Standing]:
    """The standing after each of (stage, score), one step apart."""
    found = [Standing()]
    for step, (stage, score) in enumerate(validations, start=1):
        found.append(found[-1].after(stage=stage, step=step, score=score))
    return found[1:]


@pytest.mark.parametrize(
    ("scores", "stale", "best_step"),
    [
        ([0.1, 0.2, 0.3], [0, 0, 0], 3),
        ([0.3, 0.2, 0.3, 0.4, 0.1], [0, 1, 2, 0, 1], 4),
        ([-2.0, -1.5, -1.6], [0, 0, 1], 2),
        ([None, None, 0.1], [0, 1, 0], 3),
        ([NAN, 0.1, NAN, float("inf")], [0, 0, 1, 2], 2),
        ([0.0, 0.0, 0.0], [0, 1, 2], 1),
    ],
)
def test_what_is_no_better_is_stale(
    scores: list[float | None], stale: list[int], best_step: int
) -> None:
    found = standings(*(("A", score) for score in scores))
    assert [standing.num_stale for standing in found] == stale
    assert found[-1].best is not None
    assert found[-1].best.step == best_step
    assert found[-1].best.score == scores[best_step - 1]


def test_nothing_finite_is_no_best_at_all() -> None:
    assert standings(("A", None), ("A", NAN))[-1].best is None


def test_a_stage_is_given_its_first_validation_and_competes_with_the_one_before() -> None:
    found = standings(("A", 0.5), ("A", 0.4), ("B", 0.3), ("B", 0.4), ("B", 0.6))
    assert [standing.num_stale for standing in found] == [0, 1, 0, 1, 0]
    assert [standing.best and standing.best.stage for standing in found] == list("AAAAB")


def test_patience_is_over_after_as_many_stale_validations_of_that_stage() -> None:
    standing = standings(("A", 0.5), ("A", 0.4), ("A", 0.5))[-1]
    ends = {patience: standing.is_exhausted("A", patience=patience) for patience in range(4)}
    assert ends == {0: False, 1: True, 2: True, 3: False}
    assert not standing.is_exhausted("B", patience=1), "that stage has not begun"


@pytest.mark.parametrize("standing", [Standing(), standings(("A", 0.1), ("B", 1 / 3))[-1]])
def test_a_checkpoint_keeps_it_exactly(standing: Standing) -> None:
    place = Place(stage="B", step=2, samples=24, validation=standing)
    tree = json.loads(json.dumps(asdict(place)))
    assert place_from(tree) == place


def named(root: Path) -> object:
    path = root / best.FILE
    return json.loads(path.read_text()) if path.exists() else None


def test_the_file_names_the_best_one_of_the_steps_that_there_are(tmp_path: Path) -> None:
    for number in (10, 20):
        publish(tmp_path, "A", number)
    first, second = Best(stage="A", step=10, score=0.5), Best(stage="A", step=20, score=0.75)
    of_first, of_second = Standing(best=first, stage="A"), Standing(best=second, stage="A")
    publish_best(tmp_path, second, metric="em")
    assert named(tmp_path) == {"stage": "A", "step": 20, "score": 0.75, "metric": "em"}
    assert [path.name for path in tmp_path.glob("best*")] == [best.FILE]
    assert repair(tmp_path, of_second, metric="em") == (of_second, [])

    # The run goes on from step 10, which does not know of step 20.
    standing, messages = repair(tmp_path, of_first, metric="em")
    assert standing == of_first
    assert named(tmp_path) == {"stage": "A", "step": 10, "score": 0.5, "metric": "em"}
    assert len(messages) == 1
    assert "stage A step 10" in messages[0]

    # The best step itself is removed: no later one can be measured against it any more.
    (tmp_path / "stageA" / "step-00000010" / "manifest.json").unlink()
    standing, messages = repair(tmp_path, of_first, metric="em")
    assert standing == Standing(stage="A")
    assert named(tmp_path) is None
    assert "stage A step 10, is gone" in messages[0]
    assert repair(tmp_path, standing, metric="em") == (standing, [])


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}"])
def test_a_damaged_file_is_written_anew_or_removed(tmp_path: Path, text: str) -> None:
    publish(tmp_path, "A", 10)
    (tmp_path / best.FILE).write_text(text)
    standing = Standing(best=Best(stage="A", step=10, score=0.5), stage="A")
    assert len(repair(tmp_path, standing, metric="f1")[1]) == 1
    assert named(tmp_path) == {"stage": "A", "step": 10, "score": 0.5, "metric": "f1"}
    (tmp_path / best.FILE).write_text(text)
    assert len(repair(tmp_path, Standing(), metric="f1")[1]) == 1
    assert named(tmp_path) is None


def test_it_is_no_step_itself(tmp_path: Path) -> None:
    publish(tmp_path, "B", 3)
    publish_best(tmp_path, Best(stage="B", step=3, score=1.0), metric="em")
    step = newest(tmp_path)
    assert step is not None
    assert (step.stage, step.number) == ("B", 3)
