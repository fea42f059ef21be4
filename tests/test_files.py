"""Files that are being written: their names are their writer's own."""

import os
import time
from pathlib import Path

import pytest

from latentwire import files


def test_a_file_is_replaced_and_what_is_beside_it_stays(tmp_path: Path) -> None:
    mine = {name: tmp_path / name for name in ("a.tmp", "a.json.tmp")}
    for path in mine.values():
        path.write_text("mine")
    files.replace_text(tmp_path / "a.json", "new")
    files.replace_text(tmp_path / "a.json", "newer")
    assert (tmp_path / "a.json").read_text() == "newer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", *sorted(mine)]
    assert {path.read_text() for path in mine.values()} == {"mine"}


def test_what_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError):
        files.publish(tmp_path / "a", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_only_old_folders_by_our_own_names_are_removed(tmp_path: Path) -> None:
    out = tmp_path / "wire"
    fresh, old = files.fresh_name(out), files.fresh_name(out)
    others = [tmp_path / name for name in ("wire.tmp", "wire.old.tmp", "other.1-0123abcd.tmp")]
    for folder in (fresh, old, *others):
        folder.mkdir()
        (folder / "file").write_text("x")
    link = files.fresh_name(out)
    link.symlink_to(others[0], target_is_directory=True)
    for folder in (old, *others):
        os.utime(folder, (0, time.time() - 2 * files._ABANDONED_SECONDS))
    files.remove_abandoned(out)
    assert sorted(tmp_path.iterdir()) == sorted([fresh, link, *others])
    files.remove_abandoned(tmp_path / "nowhere" / "wire")
