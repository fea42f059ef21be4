"""Whether a result can be written, asked before there is one."""

from pathlib import Path

import pytest

from latentwire import writable
from latentwire.config import ConfigError


def test_what_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    file, new = tmp_path / "a.json", tmp_path / "more" / "b.json"
    file.write_text("before")
    for path in (file, new, Path("/dev/null")):
        writable.check_file("--json", path)
    assert file.read_text() == "before" and Path("/dev/null").is_char_device()
    writable.make_folder("--out", tmp_path / "out" / "in")
    assert list((tmp_path / "out" / "in").iterdir()) == [] == list(new.parent.iterdir())


def test_what_cannot_be_written_is_said_with_its_flag(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("before")
    for check in (writable.make_folder, writable.check_file):
        with pytest.raises(ConfigError, match="--out: .*/file/a cannot be written: .*; name anoth"):
            check("--out", file / "a")
    with pytest.raises(ConfigError, match="cannot be written"):
        writable.make_folder("--out", file)
    with pytest.raises(ConfigError, match="cannot be written: .*Is a directory"):
        writable.check_file("--json", tmp_path)
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]


def test_a_full_disk_is_seen_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    monkeypatch.setattr(writable, "fresh_name", lambda path: path.with_name("full"))
    with pytest.raises(ConfigError, match="--out: .*No space left"):
        writable.make_folder("--out", tmp_path)
    assert list(tmp_path.iterdir()) == []
