"""Low-rank updates of a decoder's linear layers (arXiv 2106.09685), as weights of its unit.

They are handed to the decoder as tensors, like the soft prompt, and so are sharded, saved and
trained with the rest of the unit; the decoder itself, quantised or not, stays frozen and reads
text without them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

Updates = Mapping[str, tuple[Tensor, Tensor]]
"""By linear layer: [rank, in] and [out, rank], with the update's scale in the second."""


class LoraUpdates(nn.Module):
    """The updates of some linear layers; they start at zero.

    Args:
        linears: (in, out) features by layer.
        scale: of the update.
    """

    def __init__(self, linears: Mapping[str, tuple[int, int]], *, rank: int, scale: float) -> None:
        super().__init__()
        self._names = list(linears)
        self._scale = scale
        for index, (num_in, num_out) in enumerate(linears.values()):
            down = torch.randn(rank, num_in) / num_in**0.5
            self.register_parameter(f"down_{index}", nn.Parameter(down))
            self.register_parameter(f"up_{index}", nn.Parameter(torch.zeros(num_out, rank)))

    def forward(self) -> dict[str, tuple[Tensor, Tensor]]:
        # Copies: a sharded weight is taken apart again when the forward ends.
        return {
            name: (
                getattr(self, f"down_{index}").clone(),
                getattr(self, f"up_{index}") * self._scale,
            )
            for index, name in enumerate(self._names)
        }
