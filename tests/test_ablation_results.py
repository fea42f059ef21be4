"""Results of ablations: those that ship, each with its report, and how they are summed up."""

from dataclasses import replace
from pathlib import Path

import pytest

from latentwire import ablate
from latentwire.ablating.file import Row, read_file
from latentwire.ablating.results import RESULTS, Result, read_results
from latentwire.ablating.scores import Scores
from latentwire.config_file import PACKAGED
from latentwire.evaluation.metrics import bootstrap_ci95

PACKAGED_RESULTS = {
    "ablations.yaml": "",
    "evidence.yaml": "evidence",
    "harder.yaml": "harder",
    "longer.yaml": "longer",
}
"""Rows that ship with the package, and the folder of their results."""


@pytest.mark.parametrize("name", PACKAGED_RESULTS)
def test_the_packaged_rows_can_all_be_trained(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablate.main([f"--file={PACKAGED / name}", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = read_file(PACKAGED / name).rows
    assert len(lines) == sum(len(row.seeds) for row in rows)
    assert len(rows[0].seeds) >= 3, "the default has seeds enough to tell noise"


@pytest.mark.parametrize(
    "name", [name for name, at in PACKAGED_RESULTS.items() if (PACKAGED / at / RESULTS).exists()]
)
def test_the_packaged_report_is_of_the_packaged_results(name: str, tmp_path: Path) -> None:
    """Nothing in it was typed: it is what its results give."""
    folder = PACKAGED / PACKAGED_RESULTS[name]
    ablation = read_file(PACKAGED / name)
    known = read_results(folder / RESULTS)
    every = ablate.trials(ablation, root=str(tmp_path), checkpoints=str(tmp_path))
    ablate.report(ablation, every, known, tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_text() == (folder / path.name).read_text(), path.name


def test_a_seed_may_lack_a_kind_of_question(tmp_path: Path) -> None:
    ablation = read_file(PACKAGED / "ablations.yaml")
    known = read_results(PACKAGED / RESULTS)
    known["default-s1"] = replace(known["default-s1"], by_kind={})
    every = ablate.trials(ablation, root=str(tmp_path), checkpoints=str(tmp_path))
    ablate.report(ablation, every, known, tmp_path)
    assert "wire, shared" in (tmp_path / "ABLATIONS.md").read_text()


def test_a_document_weighs_as_much_as_its_questions() -> None:
    asked = (10, 1, 1, 1)

    def scores(rights: tuple[int, ...]) -> Scores:
        result = Result(
            row="a",
            seed=0,
            digest="",
            num_steps=1,
            seconds_per_step=1.0,
            em={"d": {"latent@5": sum(rights) / sum(asked)}},
            compression={"d": {"latent@5": 5.0}},
            by_kind={},
            asked=asked,
            right={"d": {"latent@5": rights}},
            curve=(),
        )
        return Scores(row=Row(name="a", part="a"), results=(result,))

    found = scores((10, 0, 0, 0)).against(scores((0, 0, 0, 0)))
    assert found is not None and found.mean == pytest.approx(10 / 13)
    # Documents are drawn, and each brings its questions.
    values, documents = [1.0] * 10 + [0.0] * 3, [0] * 10 + [1, 2, 3]
    assert (found.low, found.high) == bootstrap_ci95(values, documents=documents)
    assert scores((10, 0, 0, 0)).interval() == (found.low, found.high)
    assert found.high > 0.9 > bootstrap_ci95([1.0, 0.0, 0.0, 0.0])[1], "alike they give another"
