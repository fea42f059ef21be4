"""Names of the wire's trained parts, as diagnostics tell them apart."""

SHARED_PARTS = ("encoder", "refiner")
"""Of the shared unit."""
DECODER_PARTS = ("adapter", "deep_prefix", "gist", "lora")
"""Of a decoder's unit."""
PARTS = (*SHARED_PARTS, *DECODER_PARTS)

_OF_MODULE = {
    "prefix": "deep_prefix",
    "prefix_slots": "deep_prefix",
    "filler": "deep_prefix",
    "gist": "gist",
    "lora": "lora",
}


def part_of_shared(name: str) -> str:
    """The part of the shared unit that a parameter belongs to, by its name."""
    return "refiner" if name.startswith("encoder.refiner.") else "encoder"


def part_of_decoder(name: str) -> str:
    """The part of a decoder's unit that a parameter belongs to; what stands between the wire and
    the soft prompt, begin and end vectors included, is the adapter."""
    return _OF_MODULE.get(name.split(".")[0], "adapter")
