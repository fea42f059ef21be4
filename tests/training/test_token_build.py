"""A run with its tokens in files: the same numbers, and the next one makes none."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import small_overrides

from latentwire import config_file
from latentwire.config import ConfigError
from latentwire.data import token_cache
from latentwire.data.encoder_texts import EncoderTokenizer
from latentwire.testing import run_distributed
from latentwire.training import run
from latentwire.training.cache_error import CacheError
from latentwire.training.preflight import preflight

SHORT = [
    "sharding.backend=fsdp",
    "data.samples=24",
    "diagnostics.health_interval=0",
    "train.stage_a.steps=2",
    "train.stage_b.steps=1",
]


def runs_on_rank(rank: int, world_size: int, attempts: list[list[str]]) -> list[Any]:
    """For each run, how it ended, how often this rank made a file and cut a text of training."""
    found = []
    counts = {"made": 0, "cut": 0}
    make, ids = token_cache._make, EncoderTokenizer.ids

    def making(*args: Any) -> None:
        counts["made"] += 1
        make(*args)

    def cutting(self: EncoderTokenizer, text: str) -> list[int]:
        before = text in self._ids
        result = ids(self, text)
        known = getattr(self._pieces, "_known", None)
        counts["cut"] += not before and (known is None or known.ids(text) is None)
        return result

    token_cache._make, EncoderTokenizer.ids = making, cutting  # type: ignore[method-assign]
    for overrides in attempts:
        counts.update(made=0, cut=0)
        config = config_file.load("smoke", overrides)
        try:
            state = run.train(preflight(config, world_size=world_size)).state
        except CacheError as error:
            state = str(error)
        found.append([state, counts["made"], counts["cut"]])
    return found


def test_numbers_are_the_same_and_the_next_run_makes_none(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(pair, tmp_path, *SHORT)
    attempts = [
        [*overrides, "run.tag=live"],
        [*overrides, "run.tag=first", "data.token_cache=true"],
        [*overrides, "run.tag=next", "data.token_cache=true", "train.stage_b.steps=2"],
    ]
    ranks = run_distributed(runs_on_rank, 2, attempts)
    for found in ranks:
        assert [state for state, _, _ in found] == ["finished"] * 3
        # What is left are the texts of validation and evaluation.
        assert found[0][2] > found[1][2] and found[0][1] == 0
    assert sorted(found[1][1] for found in ranks) == [0, 1]
    assert [found[2][1] for found in ranks] == [0, 0]
    (folder,) = (tmp_path / "checkpoints" / "tokens").iterdir()
    assert (folder / token_cache.FILE).is_file()
    live, first = (losses(tmp_path / "runs" / tag) for tag in ("live", "first"))
    assert live == first and len(live) > 2


def losses(folder: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, (folder / "diagnostics.jsonl").read_text().splitlines())
    names = ("step", "rank", "decoder", "tf", "grad_norm")
    return [{key: row[key] for key in names if key in row} for row in rows if "tf" in row]


def test_a_folder_that_cannot_be_written_ends_every_rank(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "tokens").write_text("in the way")
    overrides = small_overrides(pair, tmp_path, *SHORT, "data.token_cache=true")
    for ((state, made, _),) in run_distributed(runs_on_rank, 2, [overrides]):
        assert state.startswith("[Errno ") and "the tokens' files" in state and made == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["encoder.kind=byte"], "data.token_cache: true, but encoder.kind byte reads letters"),
        (["run.tag=tokens"], "run.tag: 'tokens' is the token cache's"),
    ],
)
def test_what_makes_no_sense_is_refused(
    more: list[str], words: str, pair: Path, tmp_path: Path
) -> None:
    overrides = small_overrides(pair, tmp_path, "data.token_cache=true", *more)
    with pytest.raises(ConfigError, match=words):
        preflight(config_file.load("smoke", overrides), world_size=1)


def test_without_the_library_it_is_refused(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec

    def found(name: str, *more: Any) -> Any:
        return None if name == "datasets" else real(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    overrides = small_overrides(pair, tmp_path, "data.token_cache=true")
    with pytest.raises(
        ConfigError, match=r"data\.token_cache: true, but .*pip install -e '\.\[data\]'"
    ):
        preflight(config_file.load("smoke", overrides), world_size=1)
