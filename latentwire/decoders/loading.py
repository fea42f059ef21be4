"""Loads a frozen decoder: where its weights are, in which precision, and what they keep."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from latentwire.config import ConfigError, DecoderConfig
from latentwire.data.tokenizers import load_tokenizer
from latentwire.decoders.compiled import compile_layers
from latentwire.decoders.copy_ranks import CopyRanks
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.decoders.quantised import prepare_quantised
from latentwire.decoders.recompute import recompute_layers
from latentwire.decoders.sharded_loading import load_sharded

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_decoder(
    name: str,
    config: DecoderConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    ranks: CopyRanks | None = None,
) -> FrozenDecoder:
    """Loads a decoder by folder or hub id, frozen, on one device or over ``ranks``.

    Args:
        dtype: the run's precision, where the decoder has none of its own. Quantised layers compute
            in it; embeddings, norms and the output layer are held in it.
        ranks: that hold the decoder together; all of them must call. None loads all of it here.

    Raises:
        ConfigError: the model has nothing that the configuration asks to quantise, recompute or
            shard, or does not show its layers.
    """
    if config.precision is not None:
        dtype = _DTYPES[config.precision]
    if ranks is None:
        model = _load_whole(name, config, dtype, device)
    else:
        model = load_sharded(name, config, dtype=dtype, device=device, ranks=ranks)
    targets = config.lora.targets if config.lora.rank else None
    decoder = FrozenDecoder(name, model, load_tokenizer(config), lora_targets=targets, ranks=ranks)
    num_layers = getattr(decoder.model.config.get_text_config(), "num_hidden_layers", None)
    if not decoder.num_layers or num_layers not in (None, decoder.num_layers):
        problem = f"its {type(decoder.model).__name__} does not show which modules are its layers"
        raise ConfigError([f"decoders.{name}.model: {problem}; give another model"])
    if config.compile:
        compile_layers(name, model, device=device)
    if config.gradient_checkpointing:
        recompute_layers(name, model, decoder.lora)
    return decoder


def _load_whole(name: str, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> Any:
    extra: dict[str, Any] = {}
    if config.quantization != "none":
        extra["quantization_config"] = _quantisation(config, dtype)
        extra["device_map"] = {"": device}
    model = AutoModelForCausalLM.from_pretrained(
        config.model,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        dtype=dtype,
        attn_implementation="sdpa",
        use_safetensors=True,
        **extra,
    )
    if config.quantization == "none":
        model = model.to(device)
    elif not prepare_quantised(model):
        raise ConfigError(
            [
                f"decoders.{name}.quantization: '{config.quantization}', but {config.model} has no "
                "linear layer that bitsandbytes quantises; use none"
            ]
        )
    return model


def _quantisation(config: DecoderConfig, dtype: torch.dtype) -> Any:
    """What transformers is asked for; it leaves the output layer and tied embeddings whole."""
    from transformers import BitsAndBytesConfig

    if config.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
