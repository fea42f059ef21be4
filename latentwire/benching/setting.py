"""What is measured: a recipe with its own models and data, or with made-up ones in their place."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentwire.benching import made_up
from latentwire.config import Config, ConfigError
from latentwire.planning import shapes

_WAIT_SECONDS = 1800.0
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Made-up texts, in tokens of any of the models."""

    context_tokens: int = 256
    questions: int = 4
    """Of each context."""
    question_tokens: int = 13
    answer_tokens: int = 5
    contexts: int = 96
    """How many there are in all; a tenth of them is held out, twice."""


def default_folder() -> Path:
    """Where made-up models are kept from one call to the next."""
    return Path(tempfile.gettempdir()) / f"latentwire-bench-{os.getuid()}"


def made_up_overrides(config: Config, texts: Texts, folder: Path) -> list[str]:
    """Writes the models and texts that are not in ``folder`` yet; what names them.

    Every rank calls it: the first of each node writes, the others wait for it.

    Raises:
        ConfigError: nobody knows a model's shape, the folder cannot be written, or it is the
            default one and another user's.
    """
    if folder == default_folder():
        _claim(folder)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    named = {f"decoders.{name}": settings.model for name, settings in config.decoders.items()}
    if config.encoder.kind != "byte":
        named["encoder"] = config.encoder.model
    entries = {key: _entry(key, model) for key, model in named.items()}
    overrides = []
    for key, entry in entries.items():
        place = folder / f"model-{_digest({'entry': entry, 'dtype': str(dtype)})}"

        def write(part: Path, entry: Mapping[str, Any] = entry) -> None:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            made_up.write_model(part, entry, seed=_SEED, dtype=dtype, device=device)
            if device.type == "cuda":
                # What it took is nothing of a step's.
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)

        _published(place, write)
        overrides += [f"{key}.model={place}", f"{key}.trust_remote_code=false"]
    words = min(made_up.num_words(entry["vocab_size"]) for entry in entries.values())
    place = folder / f"texts-{_digest(dataclasses.asdict(texts) | {'words': words})}"
    _published(place, lambda part: _write_texts(part, texts, words))
    return [
        *overrides,
        "data.source=jsonl",
        f"data.path={place / _TEXTS}",
        f"data.questions_per_context={texts.questions}",
        f"data.max_answer_tokens={texts.answer_tokens}",
    ]


_TEXTS = "texts.jsonl"


def _write_texts(part: Path, texts: Texts, words: int) -> None:
    part.mkdir()
    made_up.write_texts(part / _TEXTS, words=words, seed=_SEED, **dataclasses.asdict(texts))


def _entry(key: str, model: str) -> Mapping[str, Any]:
    """The keys of a model's config.json, from its folder or from the shipped shapes."""
    found = shapes.entry(model)
    if found is None:
        raise ConfigError(
            [
                f"{key}.model: the shape of '{model}' is neither shipped with the recipes nor that "
                "of a local folder; name one of them to make up its weights"
            ]
        )
    return found


def _claim(folder: Path) -> None:
    """Makes a folder whose name is known to all who share a machine."""
    with contextlib.suppress(OSError):  # said where something is written
        folder.mkdir(mode=0o700, exist_ok=True)
    if folder.exists() and folder.stat().st_uid != os.getuid():
        raise ConfigError([f"--folder: {folder} is another user's; name another"])


def _published(place: Path, write: Any) -> None:
    """Writes ``place`` where it is not there yet: whole, or not at all."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        end = time.monotonic() + _WAIT_SECONDS
        while not place.exists():
            if time.monotonic() > end:
                raise ConfigError([f"{place} was not written by the first rank of this node"])
            time.sleep(0.2)
        return
    if place.exists():
        return
    part = place.with_name(f"{place.name}.part-{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.rename(place)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        if place.exists():  # another process was first
            return
        raise ConfigError(
            [f"--folder: {place.parent} cannot be written: {error}; name another, or free space"]
        ) from None


def _digest(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
