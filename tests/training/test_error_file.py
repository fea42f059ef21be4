"""What torchrun's summary has of a rank that failed."""

import json
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.api import ProcessFailure

from latentwire.training.error_file import leave_error_file


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
