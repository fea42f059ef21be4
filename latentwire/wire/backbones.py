"""What reads a text for the encoder: token ids to states, trained or frozen."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from latentwire.config import ByteConfig, EncoderConfig
from latentwire.data.encoder_texts import BYTE_WINDOW
from latentwire.wire.attention import Block, hidden_from, sinusoid

NamedParameters = list[tuple[str, nn.Parameter]]


class Backbone(Protocol):
    """Token ids to states."""

    width: int
    """Of a state."""

    def __call__(self, ids: Tensor, real: Tensor) -> Tensor:
        """[texts, tokens] -> [texts, tokens, width]; ``real`` is False at padding."""

    def layers(self) -> list[nn.Module]:
        """The transformer layers, for sharding them one by one."""

    def pretrained(self) -> nn.Module | None:
        """The part that was trained before, which follows the encoder's own learning rate."""


class TrainedModel(nn.Module):
    """A trained copy of a causal language model, looking both ways or only back."""

    def __init__(self, config: EncoderConfig, model: Any) -> None:
        super().__init__()
        self.model = _without_dropout(model.train())
        if config.lora.rank:
            self.model = _with_lora(self.model, config)
        if config.activation_checkpointing:
            # The method's name in transformers 5.20 and later, and before.
            enable = getattr(self.model, "activation_checkpointing_enable", None)
            (enable or self.model.gradient_checkpointing_enable)({"use_reentrant": False})
            if config.lora.rank:
                self.model.enable_input_require_grads()
        self.width = int(self.model.config.hidden_size)
        self._bidirectional = config.attention == "bidirectional"

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        states: Tensor = _read(
            self.model, ids, real, bidirectional=self._bidirectional
        ).last_hidden_state
        return states

    def layers(self) -> list[nn.Module]:
        return transformer_layers(self.model)

    def pretrained(self) -> nn.Module | None:
        return self.model


class FrozenStates(nn.Module):
    """The states of several layers of a frozen language model, each read by a trained projection.

    A single layer's states, the last one's least of all, hold what a text says badly; all of them
    together do (arXiv 2602.03784, layer ablation).
    """

    def __init__(self, config: EncoderConfig, model: Any) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.width = int(self.model.config.hidden_size)
        self._layers = config.layers or tuple(range(len(transformer_layers(self.model)) + 1))
        self.norms = nn.ModuleList(nn.LayerNorm(self.width) for _ in self._layers)
        self.projections = nn.ModuleList(
            nn.Linear(self.width, self.width, bias=False) for _ in self._layers
        )

    def train(self, mode: bool = True) -> "FrozenStates":
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        with torch.no_grad():
            # Untrained, it knows only how to look back.
            states = _read(
                self.model, ids, real, bidirectional=False, output_hidden_states=True
            ).hidden_states
        parts = [
            project(norm(states[layer]))
            for layer, norm, project in zip(self._layers, self.norms, self.projections, strict=True)
        ]
        return torch.stack(parts).sum(0)

    def layers(self) -> list[nn.Module]:
        return transformer_layers(self.model)

    def pretrained(self) -> nn.Module | None:
        return None


class ByteTransformer(nn.Module):
    """A transformer over UTF-8 bytes, from scratch."""

    def __init__(self, config: ByteConfig, *, bidirectional: bool) -> None:
        super().__init__()
        self.width = config.width
        self._bidirectional = bidirectional
        self.embed = nn.Embedding(256, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        place = torch.arange(ids.shape[1], device=ids.device)
        states = self.embed(ids) + sinusoid(place, self.width).to(self.embed.weight.dtype)
        visible = real[:, None, None, :]
        if not self._bidirectional:
            visible = visible & (place[None, :] <= place[:, None])
        bias = hidden_from(visible)
        for block in self.blocks:
            states = block(states, bias)
        normed: Tensor = self.norm(states)
        return normed

    def layers(self) -> list[nn.Module]:
        return list(self.blocks)

    def pretrained(self) -> nn.Module | None:
        return None


def make_backbone(config: EncoderConfig, model: Any = None) -> Any:
    """The backbone that a configuration names.

    Args:
        model: the language model to build on; None loads it.
    """
    if config.kind == "byte":
        return ByteTransformer(config.byte, bidirectional=config.attention == "bidirectional")
    model = _load(config) if model is None else model
    return (TrainedModel if config.kind == "lm" else FrozenStates)(config, model)


def transformer_layers(model: Any) -> list[nn.Module]:
    """The layers of a Hugging Face model that read text, from the input up; of a model that reads
    images too not those that do."""
    text = model.get_decoder()
    num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    names = set(getattr(model, "_no_split_modules", None) or ())
    # A sharded module is of a class that derives from its own.
    found = [m for m in text.modules() if names & {kind.__name__ for kind in type(m).__mro__}]
    if num_layers in (None, len(found)):
        return found
    # It names none of them, or others too.
    lists = (m for m in text.modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers)
    return list(next(lists, nn.ModuleList(found)))


def longest_text(config: Any) -> int:
    """Positions of which a model reads text as it was trained to, from its configuration.

    Of a model whose angles change for a whole batch once one row of it is longer than the model
    was first trained for (LongRoPE), those before that change: what a text says may depend neither
    on what stands beside it nor on how much of it is read at a time.
    """
    text = config.get_text_config()
    longest = int(getattr(text, "max_position_embeddings", None) or 1 << 30)
    rope = getattr(text, "rope_parameters", None) or {}
    # There may be some for each kind of layers.
    for angles in (rope, *(part for part in rope.values() if isinstance(part, dict))):
        if angles.get("rope_type") == "longrope":
            longest = min(longest, int(angles["original_max_position_embeddings"]))
    return longest


def encoder_window(config: EncoderConfig) -> int:
    """Longest text of the encoder in its own tokens."""
    if config.kind == "byte":
        return config.max_tokens or BYTE_WINDOW
    model = AutoConfig.from_pretrained(
        config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    return longest_text(model)


def _load(config: EncoderConfig) -> Any:
    return AutoModel.from_pretrained(
        config.model,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        attn_implementation="sdpa",
        dtype=torch.float32,
        use_safetensors=True,
    )


def _without_dropout(model: Any) -> Any:
    """The model with every dropout and jitter of its own at zero: what they draw would depend on
    the rank, and a curve on the layout."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    for holder in (*configs.values(), *model.modules()):
        for key, value in list(vars(holder).items()):
            if ("drop" in key or "jitter" in key) and isinstance(value, float):
                setattr(holder, key, 0.0)
    return model


def _with_lora(model: Any, config: EncoderConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = config.lora.targets
    return get_peft_model(
        model,
        LoraConfig(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            target_modules=targets if targets == "all-linear" else targets.split(","),
        ),
    )


def _read(model: Any, ids: Tensor, real: Tensor, *, bidirectional: bool, **more: bool) -> Any:
    mask = real.long()
    if bidirectional:
        tokens = real.shape[1]
        visible = real[:, None, None, :].expand(-1, -1, tokens, -1)
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        lowest = torch.finfo(dtype).min
        mask = torch.zeros(visible.shape, dtype=dtype, device=real.device)
        mask = mask.masked_fill_(~visible, lowest)
    place = torch.arange(ids.shape[1], device=ids.device)
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=place[None, :].expand_as(ids),
        use_cache=False,
        **more,
    )


def named_trainable(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The trained parameters of ``module`` with their names."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)
