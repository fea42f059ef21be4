"""The encoder: a trained copy of a pretrained causal LM, pooled into the wire.

The decoder-side results of peers agree on the parts: start from a language model and train it,
let it look both ways, pool contiguous spans (arXiv 2510.20797, arXiv 2510.20535).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from latentwire.config import EncoderConfig, WireConfig
from latentwire.wire.pooling import mean_pool


class LMEncoder(nn.Module):
    """Texts to latents ``[texts, num_latents, d_z]`` through a trained causal LM.

    Args:
        encoder: which model, how it attends, LoRA or full training.
        wire: pooling and width.
    """

    def __init__(self, encoder: EncoderConfig, wire: WireConfig) -> None:
        super().__init__()
        self.model = _load(encoder)
        self._wire = wire
        self._bidirectional = encoder.attention == "bidirectional"
        self.project = nn.Linear(self.model.config.hidden_size, wire.d_z)

    def forward(self, ids: Tensor, num_tokens: Tensor, counts: Tensor, max_latents: int) -> Tensor:
        """[texts, tokens] -> [texts, max_latents, d_z]; see ``EncoderTexts`` for the arguments."""
        lead = self.num_lead
        place = torch.arange(ids.shape[1], device=ids.device)
        # An empty text still shows one token, so that no row of the softmax is empty.
        real = place[None, :] < (num_tokens + lead).clamp(min=1)[:, None]  # [texts, tokens]
        states = self.model(
            input_ids=ids,
            attention_mask=self._mask(real),
            position_ids=place[None, :].expand_as(ids),
            use_cache=False,
        ).last_hidden_state  # [texts, tokens, hidden]
        pooled = mean_pool(
            states[:, lead:],
            num_tokens,
            counts,
            max_latents=max_latents,
            ratio=self._wire.ratio,
            fixed=self._wire.num_latents,
        )
        return self.project(pooled)

    num_lead: int = 0
    """How many leading tokens ``EncoderTokenizer`` puts before a text; set when assembled."""

    def _mask(self, real: Tensor) -> Tensor:
        """[texts, tokens] -> the attention mask that Hugging Face takes as it is."""
        if not self._bidirectional:
            return real.long()
        tokens = real.shape[1]
        visible = real[:, None, :].expand(-1, tokens, -1)
        dtype = self.project.weight.dtype
        mask = torch.zeros(visible.shape, dtype=dtype, device=real.device)
        return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]

    def layers(self) -> list[nn.Module]:
        """The transformer layers, for sharding them one by one."""
        return transformer_layers(self.model)

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Trainable parameters by the learning rate they follow."""
        return {
            "encoder": list(_trainable(self.model, "model")),
            "adapter": list(_trainable(self.project, "project")),
        }


def transformer_layers(model: Any) -> list[nn.Module]:
    """The transformer layers of a Hugging Face model, from the input up."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def encoder_window(config: EncoderConfig) -> int:
    """Longest text of the encoder's model in tokens."""
    model = AutoConfig.from_pretrained(
        config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    return int(getattr(model, "max_position_embeddings", None) or 1 << 30)


def _load(config: EncoderConfig) -> Any:
    model = AutoModel.from_pretrained(
        config.model,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        attn_implementation="sdpa",
        dtype=torch.float32,
        use_safetensors=True,
    )
    if config.lora.rank:
        from peft import LoraConfig, get_peft_model

        targets = config.lora.targets
        model = get_peft_model(
            model,
            LoraConfig(
                r=config.lora.rank,
                lora_alpha=config.lora.alpha,
                target_modules=targets if targets == "all-linear" else targets.split(","),
            ),
        )
    if config.activation_checkpointing:
        # The method's name in transformers 5.20 and later, and before.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        if config.lora.rank:
            model.enable_input_require_grads()
    return model.train()


def _trainable(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            yield f"{prefix}.{name}", parameter
