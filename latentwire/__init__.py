"""LatentWire: latents of one encoder that several frozen language models read."""

__version__ = "0.1.0"
