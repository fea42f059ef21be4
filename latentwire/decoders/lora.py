"""Low-rank updates on a frozen decoder, active only while a wire with updates is read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from latentwire.wire.backbones import transformer_layers
from latentwire.wire.lora import Updates


class LoraSlots:
    """Places in a decoder where updates can be put in, without changing its weights.

    Args:
        model: a Hugging Face causal LM.
        targets: ends of module names, comma separated, or ``all-linear``.

    Raises:
        ValueError: no linear layer has such a name.
    """

    def __init__(self, model: nn.Module, targets: str) -> None:
        ends = None if targets == "all-linear" else tuple(targets.split(","))
        inside = {id(m) for layer in transformer_layers(model) for m in layer.modules()}
        linears = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
            and id(module) in inside
            and (ends is None or name.endswith(ends))
        }
        if not linears:
            raise ValueError(f"'{targets}' is the end of no linear layer's name")
        # A quantised layer's weight has another shape; its features are its own.
        self.features: Mapping[str, tuple[int, int]] = {
            name: (module.in_features, module.out_features) for name, module in linears.items()
        }
        self.active: Updates = {}
        """The updates in use."""
        for name, module in linears.items():
            module.register_forward_hook(self._hook(name))

    @contextmanager
    def using(self, updates: Updates) -> Iterator[None]:
        """The decoder with ``updates``; without any it is its frozen self."""
        before, self.active = self.active, updates
        try:
            yield
        finally:
            self.active = before

    def _hook(self, name: str) -> Any:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if name not in self.active:
                return output
            down, up = self.active[name]
            x = inputs[0].to(down.dtype)
            update: Tensor = (x @ down.T) @ up.T
            return output + update.to(output.dtype)

        return add
