"""What torchrun's summary has of a rank that failed."""

import errno
import json
import logging
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.api import ProcessFailure

from latentwire import train as command
from latentwire.checkpointing.writer import SaveError
from latentwire.config import Config
from latentwire.training.cache_error import CacheError
from latentwire.training.error_file import leave_error_file
from latentwire.training.guard import NonFiniteError
from latentwire.training.outcome import Outcome
from latentwire.training.preflight import preflight
from latentwire.training.unreadable import UnreadableError


@pytest.mark.parametrize("is_clear", [True, False])
def test_the_launcher_reads_it(
    is_clear: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    try:
        raise ValueError("too long")
    except ValueError as error:
        leave_error_file(error, is_clear=is_clear)
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(file))
    assert failure.timestamp > 0
    assert failure.message["message"] == ("too long" if is_clear else "ValueError: too long")
    assert ("Traceback" in json.dumps(failure.message)) == (not is_clear)


def test_without_a_launcher_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    leave_error_file(ValueError("x"), is_clear=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "none" / "error.json"))
    leave_error_file(ValueError("x"), is_clear=True)


@pytest.mark.parametrize(
    "error",
    [
        NonFiniteError("4 steps in a row"),
        SaveError("no room"),
        CacheError(errno.EACCES, "no"),
        UnreadableError(errno.EIO, "no"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("rank", [0, 1])
def test_of_what_all_ranks_raise_rank_zero_speaks_before_another_is_gone(
    rank: int,
    error: Exception,
    small_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def work() -> Outcome:
        raise error

    waits: list[float] = []
    plan = preflight(small_config, world_size=2)
    monkeypatch.setattr(command.log, "propagate", True)
    monkeypatch.setattr(logging.getLogger("latentwire"), "propagate", True)
    monkeypatch.setattr(command.time, "sleep", waits.append)
    monkeypatch.setenv("RANK", str(rank))
    assert command._recorded(plan, work) == 1
    assert ("ended: " in caplog.text) == (rank == 0)
    assert bool(waits) == (rank != 0), "the launcher ends the others when one is gone"
