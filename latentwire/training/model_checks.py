"""Whether the models of a configuration are there, can be loaded, and have what is asked of them.

Nothing is loaded but configurations and tokenizers; what needs the modules looks at them without
their weights.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from latentwire.config import Config, DecoderConfig, EncoderConfig
from latentwire.data.hub import hub_problem, names_folder
from latentwire.data.tokenizers import load_tokenizer
from latentwire.decoders.cache import unfit_layers
from latentwire.decoders.lora import LoraSlots
from latentwire.decoders.sharded_loading import parameters_on_meta, sharding_problems
from latentwire.wire.backbones import make_backbone


def encoder_problems(config: Config) -> list[str]:
    """What is wrong with the encoder's model; the byte encoder has none."""
    encoder = config.encoder
    if encoder.kind == "byte":
        return []
    if found := _place_problems("encoder", encoder):
        return found
    model, tokenizer, found = _read("encoder", encoder)
    if model is None:
        return found
    found += _offset_problems("encoder", tokenizer, config)
    num_layers = getattr(model.get_text_config(), "num_hidden_layers", None)
    if num_layers is not None and any(layer > num_layers for layer in encoder.layers):
        found.append(
            f"encoder.layers: {list(encoder.layers)}, but encoder.model has {num_layers} layers; "
            f"use at most {num_layers}"
        )
    if encoder.lora.rank:
        try:
            with torch.device("meta"):
                code = {"trust_remote_code": encoder.trust_remote_code}
                make_backbone(encoder, AutoModel.from_config(model, **code))
        except ValueError as error:
            found.append(f"encoder.lora.targets: '{encoder.lora.targets}': {first_line(error)}")
    return found


def decoder_problems(config: Config, name: str) -> list[str]:
    """What is wrong with one decoder's model, its tokenizer included."""
    key, settings = f"decoders.{name}", config.decoders[name]
    if found := _place_problems(key, settings):
        return found
    model, tokenizer, found = _read(key, settings)
    if model is None:
        return found
    text = model.get_text_config()
    found += _offset_problems(key, tokenizer, config)
    if tokenizer.eos_token_id is None:
        found.append(f"{key}.model: its tokenizer has no EOS token, so answers cannot end")
    if kinds := unfit_layers(model):
        found.append(
            f"{key}.model: {settings.model} has layers that keep no keys and values of every token "
            f"({', '.join(kinds)}), and prompts are read in parts; give a model of attention layers"
        )
    found += _layer_problems(config, key, getattr(text, "num_hidden_layers", None))
    if settings.quantization != "none" and getattr(model, "quantization_config", None) is not None:
        found.append(
            f"{key}.quantization: '{settings.quantization}', but {settings.model} is quantised "
            "already; give the model it was made from"
        )
    hidden_size = getattr(text, "hidden_size", None)
    if hidden_size is not None and int(hidden_size * config.adapter.hidden_mult) < 1:
        found.append(
            f"adapter.hidden_mult: {config.adapter.hidden_mult} of {key}.model's hidden size "
            f"{hidden_size} is less than 1; use more"
        )
    code = {"trust_remote_code": settings.trust_remote_code}
    if settings.shard > 1:
        is_bf16 = (settings.precision or config.precision) == "bf16"
        with parameters_on_meta():
            empty = AutoModelForCausalLM.from_config(model, **code)
        dtype = torch.bfloat16 if is_bf16 else torch.float32
        found += sharding_problems(name, settings, empty, dtype=dtype)
    if settings.lora.rank:
        try:
            with torch.device("meta"):
                LoraSlots(AutoModelForCausalLM.from_config(model, **code), settings.lora.targets)
        except ValueError as error:
            found.append(f"{key}.lora.targets: {error}")
    return found


def _place_problems(key: str, settings: EncoderConfig | DecoderConfig) -> list[str]:
    """What is wrong with a model's folder or hub id."""
    model = settings.model
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            return [f"{key}.model: {model} holds no config.json; give a saved Hugging Face model"]
        if not list(folder.glob("*.safetensors")):
            return [f"{key}.model: {model} holds no *.safetensors weights; save the model as such"]
        return [f"{key}.model: {problem}" for problem in _weight_problems(folder)]
    elif names_folder(model) or folder.exists():
        return [f"{key}.model: '{model}' is no folder; give a model's folder or a hub id"]
    elif problem := _hub_problem(model, settings.revision):
        return [f"{key}.model: {problem}"]
    return []


def _weight_problems(folder: Path) -> list[str]:
    """Which weight files of a folder are missing, or not whole, as an interrupted copy leaves them;
    their headers tell how long they are."""
    index = folder / "model.safetensors.index.json"
    names = {path.name for path in folder.glob("*.safetensors")}
    found = []
    if index.is_file():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return [f"{index} cannot be read: {first_line(error)}; copy the model again"]
        found = [f"{folder / name} is missing; copy the model again" for name in named - names]
    for name in sorted(names):
        try:
            with safe_open(folder / name, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            found.append(f"{folder / name} is damaged: {first_line(error)}; copy the model again")
    return found


def _hub_problem(model: str, revision: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(model, "config.json", revision=revision or "main")
    except ValueError:
        return f"'{model}' is neither a folder nor a hub id like 'org/name'"
    return None if isinstance(cached, str) else hub_problem(f"model '{model}'")


def _read(key: str, settings: EncoderConfig | DecoderConfig) -> tuple[Any, Any, list[str]]:
    """A model's configuration and tokenizer, or Nones and what is wrong."""
    common: dict[str, Any] = {
        "revision": settings.revision,
        "trust_remote_code": settings.trust_remote_code,
    }
    try:
        model = AutoConfig.from_pretrained(settings.model, **common)
        num_layers = getattr(model.get_text_config(), "num_hidden_layers", 1)
        if num_layers < 1:
            raise ValueError(f"its configuration has {num_layers} layers")
        return model, load_tokenizer(settings), []
    except Exception as error:  # a model's own classes raise whatever they like
        problem = f"{key}.model: '{settings.model}' cannot be loaded: {first_line(error)}"
        return None, None, [problem]


def _offset_problems(key: str, tokenizer: Any, config: Config) -> list[str]:
    is_measured = "span" in config.diagnostics.grad_diag_components
    if tokenizer.is_fast or not (config.objectives.span > 0 or is_measured):
        return []
    return [
        f"{key}.model: its tokenizer has no offsets, which objectives.span needs; "
        "set objectives.span=0"
    ]


def _layer_problems(config: Config, key: str, num_layers: int | None) -> Iterator[str]:
    if num_layers is None:
        return
    objectives = config.objectives
    asked = {"objectives.state_layers": max(objectives.state_layers, default=0)}
    if objectives.span > 0:
        asked["objectives.span_layer"] = objectives.span_layer
    for what, layer in asked.items():
        if layer > num_layers:
            yield (
                f"{what}: {layer}, but {key}.model has {num_layers} layers; use at most "
                f"{num_layers}"
            )


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
