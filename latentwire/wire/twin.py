"""A module's twin without sharding: the same computation, for gradient queries of its own.

Sharding hangs hooks on a module, on its outputs and on its parameters, and takes every backward
that meets them for a training step's. The twin has none; it is an empty shell that is lent whole
weights while it is used.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from latentwire.wire.parts import PARTS


class Twin:
    """The shell of ``module``, to be made before the module is sharded; it holds no weights."""

    def __init__(self, module: nn.Module) -> None:
        shells: dict[int, nn.Module | Tensor] = {
            id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad)
            for p in module.parameters()
        }
        shells |= {id(buffer): buffer for buffer in module.buffers()}
        self._source = module
        self._shell = copy.deepcopy(module, dict(shells))

    def trained_parts(self) -> tuple[str, ...]:
        """The parts (``wire.parts``) that have trained parameters."""
        part_of: Any = self._shell.part_of
        there = {part_of(name) for name, p in self._shell.named_parameters() if p.requires_grad}
        return tuple(part for part in PARTS if part in there)

    @contextmanager
    def lent(self, weights: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """The module with ``weights``, its trained parameters asking for gradients.

        Args:
            weights: every parameter by name; they are shared, not copied.
        """
        shell = self._shell.train(self._source.training)
        # Sharding may have converted the buffers since.
        for name, buffer in self._source.named_buffers():
            owner, key = _place(shell, name)
            owner._buffers[key] = buffer
        empty = dict(shell.named_parameters(remove_duplicate=False))
        lent: dict[int, nn.Parameter] = {}
        for name, shape in empty.items():
            if id(shape) not in lent:
                tensor = weights[name].detach()
                lent[id(shape)] = nn.Parameter(tensor, requires_grad=shape.requires_grad)
            owner, key = _place(shell, name)
            owner._parameters[key] = lent[id(shape)]
        try:
            yield shell
        finally:
            for name, parameter in empty.items():
                owner, key = _place(shell, name)
                owner._parameters[key] = parameter


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, key = name.rpartition(".")
    return module.get_submodule(path), key
