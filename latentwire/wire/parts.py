"""Names of the wire's units, which are sharded whole, and of the trained parts in them."""

SHARED_UNIT = "encoder"
_OF_DECODER = "adapter_"

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


def unit_name(decoder: str) -> str:
    """The unit of what is a decoder's own."""
    return _OF_DECODER + decoder


def decoder_of(unit: str) -> str | None:
    """The decoder whose own a unit is; None of the shared one."""
    return unit.removeprefix(_OF_DECODER) if unit.startswith(_OF_DECODER) else None


def module_of(unit: str) -> str:
    """Where a unit stands in the wire's module, and in the names of an export's tensors."""
    decoder = decoder_of(unit)
    return "shared" if decoder is None else f"units.{decoder}"


def part_of_shared(name: str) -> str:
    """The part of the shared unit that a parameter belongs to, by its name."""
    return "refiner" if name.startswith("encoder.refiner.") else "encoder"


def part_of_decoder(name: str) -> str:
    """The part of a decoder's unit that a parameter belongs to; what stands between the wire and
    the soft prompt, begin and end vectors included, is the adapter."""
    return _OF_MODULE.get(name.split(".")[0], "adapter")
