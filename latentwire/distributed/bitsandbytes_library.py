"""Whether bitsandbytes can do here what a configuration asks of it."""

import importlib.util
import logging

import torch


def library_problem(*, optimizer: bool) -> str | None:
    """What keeps bitsandbytes from quantising decoders, or from stepping with 8-bit moments.

    The end of a sentence that begins with the key; None where nothing does.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return "needs bitsandbytes; pip install -e '.[quant]'"
    # On import it warns of a faster kernel that no frozen decoder could use: it has no backward.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import bitsandbytes
    from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary, lib

    version = bitsandbytes.__version__
    if isinstance(lib, ErrorHandlerMockBNBNativeLibrary):
        return (
            f"needs bitsandbytes, whose version {version} has no library for this machine "
            "(python -m bitsandbytes says why); install one that has"
        )
    step = "bitsandbytes::optimizer_update_8bit_blockwise"
    if optimizer and not torch.cuda.is_available() and not _has_cpu_kernel(step):
        return (
            f"needs a GPU with bitsandbytes {version}; pip install -U bitsandbytes for one "
            "with 8-bit optimizers on the CPU"
        )
    return None


def _has_cpu_kernel(name: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
