"""Sizes that sharding decides by, without torch, so that plans know them too."""

GATHERED_ALONE = 10_000_000
"""Parameters from which on FSDP2 gathers a transformer layer by itself."""
