"""What a manifest finds out about files: which one, and which tensor in it, is not what it was."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from latentwire.checkpointing import manifest
from latentwire.checkpointing.manifest import (
    FormatError,
    Manifest,
    content_problems,
    describe_file,
    read_manifest,
    size_problems,
)


@pytest.fixture
def step(tmp_path: Path) -> tuple[Path, Manifest]:
    """A folder with one file of two tensors and one of text."""
    save_file({"a": torch.arange(6.0), "b": torch.ones(3, 2)}, tmp_path / "x.safetensors")
    (tmp_path / "trainer.json").write_text("{}")
    files = {name: describe_file(tmp_path / name) for name in ("x.safetensors", "trainer.json")}
    found = Manifest(
        stage="A",
        step=1,
        units={"encoder": [0]},
        optimizer_steps={"encoder": 1},
        decoders={},
        versions=manifest.versions(),
        files=files,
    )
    (tmp_path / manifest.FILE).write_text(json.dumps(found.to_tree()))
    return tmp_path, found


def test_a_whole_step_has_no_problem(step: tuple[Path, Manifest]) -> None:
    folder, written = step
    assert read_manifest(folder) == written
    assert content_problems(folder, written, written.files) == []
    assert written.versions["torch"] == torch.__version__
    assert set(written.files["x.safetensors"].tensors) == {"a", "b"}


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_a_flipped_bit_is_named_by_file_and_tensor(step: tuple[Path, Manifest], bit: int) -> None:
    folder, written = step
    path = folder / "x.safetensors"
    good = path.read_bytes()
    first = 8 + int.from_bytes(good[:8], "little")
    # Tensors lie in the order of their names here: six numbers of a, then six of b.
    for offset, name in ((0, "a"), (23, "a"), (24, "b"), (47, "b")):
        bad = bytearray(good)
        bad[first + offset] ^= 1 << bit
        path.write_bytes(bad)
        (problem,) = content_problems(folder, written, written.files)
        assert str(path) in problem and f"(tensors {name})" in problem
    bad = bytearray(good)
    bad[12] ^= 1 << bit  # in the header
    path.write_bytes(bad)
    (problem,) = content_problems(folder, written, written.files)
    assert str(path) in problem


def test_a_truncated_or_missing_file_is_named(step: tuple[Path, Manifest]) -> None:
    folder, written = step
    path = folder / "x.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    (problem,) = content_problems(folder, written, written.files)
    assert f"{path} has {written.files['x.safetensors'].bytes - 5} bytes instead of" in problem
    path.unlink()
    assert size_problems(folder, written.files) == [f"{path} is missing"]


@pytest.mark.parametrize("name", ["x.safetensors", manifest.FILE])
def test_what_cannot_be_read_is_not_damaged(
    name: str, step: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, written = step
    real = Path.open

    def failing(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(PermissionError):
        content_problems(folder, read_manifest(folder), written.files)


def test_an_unknown_format_is_told_from_damage(step: tuple[Path, Manifest]) -> None:
    folder, written = step
    path = folder / manifest.FILE
    path.write_text(json.dumps(written.to_tree() | {"format": 99}))
    with pytest.raises(FormatError, match="format 99.*reads 2.*the version that wrote it"):
        read_manifest(folder)
    other = json.dumps(written.to_tree()).replace('"step": 1', '"step": 2')
    for damage in ("", "[]", '{"format": 2}', other):
        path.write_text(damage)
        with pytest.raises(ValueError, match=r"manifest\.json is damaged") as caught:
            read_manifest(folder)
        assert not isinstance(caught.value, FormatError)
    path.unlink()
    with pytest.raises(ValueError, match="never published"):
        read_manifest(folder)
