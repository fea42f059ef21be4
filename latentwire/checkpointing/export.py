"""A published step as one plain folder: the trained weights whole, without optimizer or run."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from latentwire import strict_yaml
from latentwire.checkpointing.commit import Step
from latentwire.checkpointing.components import PARTS, unit_of
from latentwire.checkpointing.manifest import content_problems, read_manifest, versions
from latentwire.checkpointing.state import CONFIG, read_place
from latentwire.config import ConfigError
from latentwire.data.hub import names_folder
from latentwire.files import fresh_name, remove_abandoned
from latentwire.wire.export_files import (
    ENCODER,
    FORMAT,
    copy_encoder_files,
    encoder_patterns,
    without_places,
    write_export,
)
from latentwire.wire.parts import module_of

_OFFSETS = "DCP_SHARDING_INFO"


def whole_tensors(folder: Path, *, part: str = PARTS[0]) -> dict[str, Tensor]:
    """One part of a component, put together by this process alone.

    Args:
        part: ``weight`` or a moment's name.

    Returns:
        Tensors by parameter name.
    """
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    for path in sorted(folder.glob("shard-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            offsets = json.loads(file.metadata()[_OFFSETS])
            for key in file.keys():  # noqa: SIM118
                kind, name = key.split(".", 1)
                if kind == part:
                    first = offsets[key]["saved_offsets"][0]
                    pieces.setdefault(name, []).append((first, file.get_tensor(key)))
    return {
        name: torch.cat([tensor for _, tensor in sorted(found, key=lambda piece: piece[0])])
        for name, found in sorted(pieces.items())
    }


def export_step(step: Step, out: Path) -> int:
    """Writes a published step's wire into ``out``, which must not exist.

    Returns:
        Trained parameters written.

    Raises:
        ConfigError: ``out`` exists, the step is damaged, or the encoder has no tokenizer here.
        OSError: it cannot be written; nothing is left of it.
    """
    if out.exists():
        raise ConfigError([f"{out} exists; choose another folder"])
    manifest, place = read_manifest(step.path), read_place(step)
    if problems := content_problems(step.path, manifest, manifest.files):
        raise ConfigError(problems)
    try:
        tree = strict_yaml.load_file(step.path / CONFIG)
    except yaml.YAMLError as error:
        raise ConfigError([f"{step.path / CONFIG}: is no valid YAML: {error}"]) from None
    weights: dict[str, Tensor] = {}
    for component in manifest.units:
        name = module_of(unit_of(component))
        tensors = whole_tensors(step.path / component)
        weights |= {f"{name}.{key}": tensor for key, tensor in tensors.items()}
    description = {
        "latentwire_format": FORMAT,
        "versions": versions(),
        "place": {"stage": place.stage, "step": place.step},
        "decoders": manifest.decoders,
        "config": without_places(tree),
    }
    remove_abandoned(out)
    fresh = fresh_name(out)
    fresh.mkdir(parents=True)
    try:
        write_export(fresh, description, weights)
        _write_encoder_files(tree["encoder"], fresh / ENCODER)
        os.rename(fresh, out)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return sum(tensor.numel() for tensor in weights.values())


def _write_encoder_files(encoder: Mapping[str, Any], target: Path) -> None:
    """Puts the encoder's configuration and tokenizer into ``target``, where it has any."""
    if encoder["kind"] == "byte":
        return
    source = Path(encoder["model"]).expanduser()
    if not source.is_dir():
        if names_folder(encoder["model"]):
            raise ConfigError(
                [
                    f"encoder.model: '{encoder['model']}' is no folder any more, and the wire's "
                    "tokenizer is in it; restore it, or call from where that path holds"
                ]
            )
        from huggingface_hub import snapshot_download

        source = Path(
            snapshot_download(
                encoder["model"],
                revision=encoder.get("revision"),
                allow_patterns=encoder_patterns(encoder),
            )
        )
    copy_encoder_files(source, target, encoder)
    if not (target / "config.json").is_file():
        raise ConfigError([f"{source} holds no config.json of the encoder's model any more"])
