"""LatentWire: latents of one encoder that several frozen language models read."""

from latentwire.version import VERSION

__version__ = VERSION
