"""Collectives of torch by one name: 2.13 renamed them, and warns of the older names."""

import torch.distributed as dist

all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""Every rank's tensor into one of all, by rank."""
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
"""Every rank's tensor summed, and each rank's part of the sum into its own."""
