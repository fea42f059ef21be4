"""The manifest of a checkpoint step: every file with its size and checksums, and what wrote it.

SHA-256 says whether a file is the one that was written; the CRC-32 of each tensor says which tensor
of a damaged file is.
"""

import hashlib
import json
import platform
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from latentwire.version import VERSION

FILE = "manifest.json"
FORMAT = 2
"""Version of the folder's layout; others are refused, since nothing can be known of them."""

_CHECKSUM = "checksum"
_PACKAGES = ("torch", "safetensors", "transformers", "deepspeed")
_CHUNK = 1 << 24
_HEADER_SIZE = 8
_LONGEST_HEADER = 100_000_000
"""Safetensors' own limit."""


class FormatError(ValueError):
    """A manifest of a format that this program does not know."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What one file of a step must be."""

    bytes: int
    sha256: str
    tensors: dict[str, int] = field(default_factory=dict)
    """CRC-32 of each tensor that the file has a part of."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that is known of a step without opening its tensors."""

    format: int = FORMAT
    stage: str
    step: int
    units: dict[str, list[int]]
    """Folders of trained tensors, each with the global ranks that wrote it."""
    optimizer_steps: dict[str, int]
    """Steps that the optimizer of each sharded unit has taken; one that waits has fewer."""
    decoders: dict[str, dict[str, Any]]
    """Identity of each frozen decoder; its weights are not here."""
    versions: dict[str, str]
    files: dict[str, FileEntry]
    """By path inside the step's folder."""

    def to_tree(self) -> dict[str, Any]:
        """As JSON holds it, with a checksum over itself."""
        tree = asdict(self)
        return {**tree, _CHECKSUM: _checksum(tree)}

    @property
    def num_bytes(self) -> int:
        return sum(entry.bytes for entry in self.files.values())


def _checksum(tree: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of this program and of what its files depend on."""
    found = {"latentwire": VERSION, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a step.

    Raises:
        FormatError: it is of another format.
        ValueError: it is missing or damaged, with the reason.
        OSError: it cannot be read now, which says nothing about what is in it.
    """
    path = folder / FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        number = tree["format"]
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: the step was never published") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None
    if number != FORMAT:
        raise FormatError(
            f"{path} has format {number!r}, this version of latentwire reads {FORMAT}; "
            "use the version that wrote it"
        )
    if tree.pop(_CHECKSUM, None) != _checksum(tree):
        raise ValueError(f"{path} is damaged: its bytes have changed")
    try:
        files = {name: FileEntry(**entry) for name, entry in tree["files"].items()}
        manifest = Manifest(**{**tree, "files": files})
        sizes = [entry.bytes + 0 for entry in files.values()]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None
    if not sizes or any(Path(name).is_absolute() or ".." in Path(name).parts for name in files):
        raise ValueError(f"{path} is damaged: its files are not inside the step")
    return manifest


def manifest_digest(folder: Path) -> str | None:
    """SHA-256 over what a step's manifest says of its tensors and other files; None without one.

    A step that is trained again bit for bit has the same: the order in which a file of tensors
    names what is in it is not in it.
    """
    try:
        files = read_manifest(folder).files
    except ValueError:
        return None
    return _checksum({name: entry.tensors or entry.sha256 for name, entry in files.items()})


def describe_file(path: Path) -> FileEntry:
    """Reads a file once and says what it is.

    Raises:
        OSError: it cannot be read. (A mapped file would end the process instead.)
    """
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        spans = _tensors(file) if path.suffix == ".safetensors" else {}
        tensors = dict.fromkeys(spans, 0)
        file.seek(0)
        while data := file.read(_CHUNK):
            digest.update(data)
            view = memoryview(data)
            for name, (start, end) in spans.items():
                part = view[max(0, start - size) : max(0, end - size)]
                tensors[name] = zlib.crc32(part, tensors[name])
            size += len(data)
    return FileEntry(bytes=size, sha256=digest.hexdigest(), tensors=tensors)


def _tensors(file: BinaryIO) -> dict[str, tuple[int, int]]:
    """Where each tensor of a safetensors file lies in it; nothing for a damaged file."""
    length = int.from_bytes(file.read(_HEADER_SIZE), "little")
    first = _HEADER_SIZE + length
    if length > _LONGEST_HEADER:
        return {}
    try:
        header = json.loads(file.read(length))
        offsets = {k: v["data_offsets"] for k, v in header.items() if k != "__metadata__"}
        return {name: (first + int(a), first + int(b)) for name, (a, b) in offsets.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def size_problems(folder: Path, files: Mapping[str, FileEntry]) -> list[str]:
    """What of the files is missing or has another size: cheap, and it finds most damage.

    Raises:
        OSError: a file's size cannot be learned now.
    """
    found = []
    for name, entry in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            found.append(f"{path} is missing")
            continue
        if size != entry.bytes:
            found.append(f"{path} has {size} bytes instead of {entry.bytes}")
    return found


def content_problems(folder: Path, manifest: Manifest, names: Iterable[str]) -> list[str]:
    """Reads whole files, and says which of them, and which tensors in them, are damaged.

    Raises:
        OSError: a file cannot be read now, which says nothing about what is in it.
    """
    found = []
    for name in names:
        entry, path = manifest.files[name], folder / name
        size = path.stat().st_size
        if size != entry.bytes:
            found.append(f"{path} has {size} bytes instead of {entry.bytes}")
            continue
        now = describe_file(path)
        if now.sha256 != entry.sha256:
            bad = [key for key, crc in entry.tensors.items() if now.tensors.get(key) != crc]
            where = f"tensors {', '.join(bad[:3])}" if bad else "outside its tensors"
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            found.append(f"{path} is damaged: its bytes have changed ({where}{more})")
    return found
