"""Loads a frozen decoder: where its weights are, in which precision, and what they keep."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from latentwire.config import ConfigError, DecoderConfig
from latentwire.data.tokenizers import load_tokenizer
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.decoders.quantised import prepare_quantised
from latentwire.decoders.recompute import recompute_layers

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_decoder(
    name: str, config: DecoderConfig, *, dtype: torch.dtype, device: torch.device
) -> FrozenDecoder:
    """Loads a decoder by folder or hub id, frozen, on one device.

    Args:
        dtype: the run's precision, where the decoder has none of its own. Quantised layers compute
            in it; embeddings, norms and the output layer are held in it.

    Raises:
        ConfigError: the model has nothing that the configuration asks to quantise or recompute.
    """
    if config.precision is not None:
        dtype = _DTYPES[config.precision]
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
    targets = config.lora.targets if config.lora.rank else None
    decoder = FrozenDecoder(name, model, load_tokenizer(config), lora_targets=targets)
    if config.gradient_checkpointing:
        recompute_layers(name, model, decoder.lora)
    return decoder


def _quantisation(config: DecoderConfig, dtype: torch.dtype) -> Any:
    """What transformers is asked for; it leaves the output layer and tied embeddings whole."""
    from transformers import BitsAndBytesConfig

    if config.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
