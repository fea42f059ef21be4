"""LatentWire: latents of one encoder that several frozen language models read."""

from typing import Any

from latentwire.version import VERSION

__version__ = VERSION


def __getattr__(name: str) -> Any:
    # Imported when asked for, so that naming the package costs nothing.
    if name == "load_wire":
        from latentwire.wire.exported import load_wire

        return load_wire
    if name == "load_reader":
        from latentwire.evaluation.asking import load_reader

        return load_reader
    raise AttributeError(f"module 'latentwire' has no attribute '{name}'")
