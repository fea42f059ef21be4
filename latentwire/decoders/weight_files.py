"""A model's safetensors as they lie on disk: any rows of any tensor, and nothing beside them.

Files are mapped, not read: what is not asked for never comes into memory.
"""

from contextlib import ExitStack
from types import TracebackType
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class WeightFiles:
    """The tensors of a model by name. Files open when a tensor in them is first asked for, and
    close with the context.

    Args:
        model: folder or hub id; what the local cache does not hold is downloaded.

    Raises:
        FileNotFoundError: the model has no safetensors under the usual names.
    """

    def __init__(self, model: str, *, revision: str | None = None) -> None:
        self._paths: dict[str, str] = {}
        self._open: dict[str, Any] = {}
        self._stack = ExitStack()
        for path in _files(model, revision):
            with safe_open(path, framework="pt") as file:
                self._paths |= dict.fromkeys(file.keys(), path)

    def __enter__(self) -> "WeightFiles":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.clear()
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._paths

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole tensor's."""
        return tuple(self._file(name).get_slice(name).get_shape())

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of a tensor, mapped from its file: copy them, do not write."""
        found: Tensor = self._file(name).get_slice(name)[start:stop]
        return found

    def whole(self, name: str) -> Tensor:
        """A whole tensor, mapped likewise."""
        found: Tensor = self._file(name).get_tensor(name)
        return found

    def _file(self, name: str) -> Any:
        path = self._paths[name]
        if path not in self._open:
            self._open[path] = self._stack.enter_context(safe_open(path, framework="pt"))
        return self._open[path]


def has_adapter(model: str, *, revision: str | None = None) -> bool:
    """Whether the model comes with a peft adapter, which transformers would load along with it."""
    return _path(model, "adapter_config.json", revision) is not None


def _path(model: str, name: str, revision: str | None) -> str | None:
    """A file of a model, where it has it."""
    path: str | None = cached_file(
        model,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return path


def _files(model: str, revision: str | None) -> list[str]:
    """Paths of all files, one or as many as the index names."""
    if path := _path(model, _WHOLE, revision):
        return [path]
    if path := _path(model, _INDEX, revision):
        files, _ = get_checkpoint_shard_files(model, path, revision=revision)
        return [str(file) for file in files]
    raise FileNotFoundError(f"has neither {_WHOLE} nor {_INDEX}")
