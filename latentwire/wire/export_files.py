"""The files of an exported wire: ``config.json``, ``model.safetensors``, a card, and ``encoder/``.

``encoder/`` holds the configuration and the tokenizer of the encoder's language model, no weights.
Nothing of the decoders is here but their names and the few numbers a wire must know of them.
"""

import contextlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentwire import config_file
from latentwire.config import Config, ConfigError
from latentwire.config_checks import problems
from latentwire.strict_json import read_object
from latentwire.wire.deep_prefix import CacheShape
from latentwire.wire.unit import DecoderShape

FORMAT = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ENCODER = "encoder"
CARD = "README.md"
_ENCODER_FILES = (
    "config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)
_OF_WIRE = ("wire.", "encoder.", "adapter.", "gist.", "decoders.")
"""Keys that a wire is built by."""
_DEFAULTS = config_file.to_tree(Config())
_PLACES = (
    *(("run", "root"), ("checkpoint", "root")),
    *(("teacher", "folder"), ("diagnostics", "diagnostic_log")),
)
"""Keys that say where a run writes."""


def read_description(folder: Path) -> dict[str, Any]:
    """What an export's ``config.json`` holds.

    Raises:
        ConfigError: it is missing, damaged, of another format, or says two things of one decoder.
    """
    path = folder / CONFIG
    try:
        found: dict[str, Any] = read_object(path)
        number = found["latentwire_format"]
        # What is shown, and what would be loaded.
        named = {name: decoder["model"] for name, decoder in found["decoders"].items()}
        loaded = {n: d["model"] for n, d in found["config"]["decoders"].items() if d is not None}
        for decoder in found["decoders"].values():
            shape_from(decoder["shape"])
        place = (found["place"]["stage"] in ("A", "B"), isinstance(found["place"]["step"], int))
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError([f"{path} is no exported wire: {error!r}"]) from None
    if number != FORMAT:
        raise ConfigError(
            [f"{path} has format {number!r}, not {FORMAT}; use the version that wrote it"]
        )
    if named != loaded:
        raise ConfigError([f"{path}: `decoders` names {named}, and `config` {loaded}"])
    if not all(place):
        raise ConfigError([f"{path}: `place` is no step of a stage: {found['place']}"])
    return found


def read_config(folder: Path) -> Config:
    """The configuration that an export was trained with, as its author left it.

    Raises:
        ConfigError: the folder is no export.
    """
    return config_file.from_tree(read_description(folder)["config"])


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The trained tensors of an export, by their names in the wire.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError([f"{path} cannot be read: {error}"]) from None


def write_export(
    folder: Path, description: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> None:
    """Writes an export, all but its ``encoder/``, into an existing folder."""
    text = json.dumps(description, indent=2, allow_nan=False) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    save_file(dict(weights), folder / WEIGHTS, metadata={"format": "pt"})
    # The library makes its files for the owner's eyes alone; not every store has modes.
    with contextlib.suppress(OSError):
        shutil.copymode(folder / CONFIG, folder / WEIGHTS)
    (folder / CARD).write_text(_card(description), encoding="utf-8")


def encoder_patterns(encoder: Mapping[str, Any]) -> list[str]:
    """Files of an encoder's model that an export holds: its configuration and tokenizer, and its
    code where that was trusted.

    Args:
        encoder: that section of the configuration.
    """
    return [*_ENCODER_FILES, *(["*.py"] if encoder.get("trust_remote_code") else [])]


def copy_encoder_files(
    source: Path, target: Path, encoder: Mapping[str, Any], *, is_received: bool = False
) -> None:
    """Copies those files, where there are any, into ``encoder/`` of an export.

    Args:
        is_received: of an export, in which links that lead elsewhere are left out: it would hand
            on whatever its author had pointed it at.
    """
    for pattern in encoder_patterns(encoder):
        for path in sorted(source.glob(pattern)):
            is_wanted = path.is_file() and path.suffix != ".safetensors"
            if is_wanted and (_is_of(path, source) or not is_received):
                target.mkdir(exist_ok=True)
                (target / path.name).write_bytes(path.read_bytes())


def _is_of(path: Path, folder: Path) -> bool:
    """Whether a file, its links followed, is of a folder; the hub's cache links into its own."""
    homes = [folder.resolve()]
    homes += [parent.parent for parent in homes[0].parents if parent.name == "snapshots"]
    return any(path.resolve().is_relative_to(home) for home in homes)


def export_config(description: Mapping[str, Any], folder: Path) -> Config:
    """The configuration of an exported wire, with its encoder's files in ``folder``.

    Raises:
        ConfigError: it is of no wire that can be built.
    """
    try:
        config = config_file.from_tree(description["config"])
    except ConfigError as error:
        raise ConfigError([f"{folder / CONFIG}: {problem}" for problem in error.problems]) from None
    bad = [problem for problem in problems(config) if problem.startswith(_OF_WIRE)]
    if bad:
        raise ConfigError([f"{folder / CONFIG}: {problem}" for problem in bad])
    if not (folder / ENCODER).is_dir():
        return config
    model = replace(config.encoder, model=str(folder / ENCODER), revision=None)
    return replace(config, encoder=model)


def without_places(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's tree without where its run has written, which is nothing of a wire's."""
    found = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in tree.items()
    }
    for section, key in _PLACES:
        found[section][key] = _DEFAULTS[section][key]
    return found


def own_code(config: Config, where: str, *, flag: str = "trust_remote_code=True") -> str:
    """What to say where models of an export would run code of their own, and may not.

    Args:
        flag: what lets it run.
    """
    models = {"encoder": config.encoder} | {
        f"decoder '{name}'": decoder for name, decoder in config.decoders.items()
    }
    brought = ", ".join(
        f"{what} ({settings.model}, revision {settings.revision or 'main'})"
        for what, settings in models.items()
        if settings.trust_remote_code
    )
    return (
        f"{where}: code of their own is brought by {brought}; read it (what an export holds is in "
        f"its encoder/), and give {flag} if you trust it"
    )


def without_trust(config: Config) -> Config:
    """The configuration with no model's own code trusted."""
    decoders = {n: replace(d, trust_remote_code=False) for n, d in config.decoders.items()}
    encoder = replace(config.encoder, trust_remote_code=False)
    return replace(config, encoder=encoder, decoders=decoders)


def shape_tree(shape: DecoderShape) -> dict[str, Any]:
    """A decoder's shape as JSON holds it; its mean embedding is only where a filler starts."""
    tree = asdict(replace(shape, mean_embedding=torch.zeros(())))
    tree.pop("mean_embedding")
    return {**tree, "linears": {name: list(pair) for name, pair in shape.linears.items()}}


def shape_from(tree: Mapping[str, Any]) -> DecoderShape:
    """Out of what ``shape_tree`` made."""
    cache = tree["cache"]
    if cache is not None:
        tuples = {key: tuple(cache[key]) for key in ("key_rms", "value_rms")}
        cache = CacheShape(**{**cache, **tuples})
    return DecoderShape(
        hidden_size=tree["hidden_size"],
        embedding_rms=tree["embedding_rms"],
        mean_embedding=torch.ones(tree["hidden_size"]),
        cache=cache,
        linears={name: (pair[0], pair[1]) for name, pair in tree["linears"].items()},
    )


def _card(description: Mapping[str, Any]) -> str:
    readers = "".join(
        f"- `{name}`: {decoder['model']}\n" for name, decoder in description["decoders"].items()
    )
    place = description["place"]
    first = next(iter(description["decoders"]))
    return (
        "---\nlibrary_name: latentwire\n---\n# A LatentWire wire\n\n"
        "Latent vectors of a text that these frozen models read in its place "
        f"(stage {place['stage']}, step {place['step']}):\n\n{readers}\n"
        '```python\nimport latentwire\n\nwire = latentwire.load_wire("<this folder or id>")\n'
        'latents = wire.encode(["A text."])\n\n'
        f'reader = latentwire.load_reader("<this folder or id>", "{first}")\n'
        'reader.answer(["A question?"], ["A text."])\n```\n\n'
        "Where a model is not at the place named above, `load_reader` takes its folder or hub id "
        "as `model=`; another model than the wire was trained with is refused.\n"
    )
