"""LatentWire: latents of one encoder that several frozen language models read.

``load_wire`` opens a trained wire, ``load_reader`` one with a frozen decoder that reads it; what
keeps either from being opened is a ``ConfigError``.
"""

from typing import TYPE_CHECKING, Any

from latentwire.version import VERSION

if TYPE_CHECKING:
    from latentwire.config import ConfigError
    from latentwire.evaluation.asking import load_reader
    from latentwire.wire.exported import load_wire

__version__ = VERSION
__all__ = ["ConfigError", "load_reader", "load_wire"]


def __getattr__(name: str) -> Any:
    # Imported when asked for, so that naming the package costs nothing.
    if name == "load_wire":
        from latentwire.wire.exported import load_wire

        return load_wire
    if name == "load_reader":
        from latentwire.evaluation.asking import load_reader

        return load_reader
    if name == "ConfigError":
        from latentwire.config import ConfigError

        return ConfigError
    raise AttributeError(f"module 'latentwire' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
