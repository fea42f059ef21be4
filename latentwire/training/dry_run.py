"""``--dry-run``: the resolved configuration, the group table and the parameter counts."""

from typing import Any

import torch
import yaml
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from latentwire import config_file
from latentwire.decoders.lora import LoraSlots
from latentwire.training import validation
from latentwire.training.held_out import draw_validation
from latentwire.training.preflight import Plan
from latentwire.wire.deep_prefix import CacheShape
from latentwire.wire.unit import DecoderShape, DecoderUnit
from latentwire.wire.wire import SharedUnit


def describe(plan: Plan) -> str:
    """What a run would do, as text; weights are neither loaded nor allocated."""
    config = plan.config
    lines = [yaml.safe_dump(config_file.to_tree(config), sort_keys=False)]
    lines.append(plan.topology.table())
    lines.append("")
    with torch.device("meta"):
        model = None if config.encoder.kind == "byte" else _model(AutoModel, config.encoder)
        shared = SharedUnit(config, num_lead=0, model=model)
        lines.append(_line("encoder", shared, _num_trained(shared)))
        for name, settings in config.decoders.items():
            decoder = _model(AutoModelForCausalLM, settings)
            unit = DecoderUnit(_shape(plan, name, decoder), config, lora=settings.lora)
            lines.append(_line(f"decoder {name}", decoder, 0))
            lines.append(_line(f"adapter {name}", unit, _num_trained(unit)))
    lines += validation.describe(config, len(draw_validation(config)))
    return "\n".join(lines)


def _line(name: str, module: nn.Module, num_trained: int) -> str:
    number = sum(parameter.numel() for parameter in module.parameters())
    trained = {0: "frozen", number: "all trained"}.get(num_trained, f"{num_trained:,} trained")
    return f"{name:<18} {number:>15,} parameters ({trained})"


def _num_trained(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _model(kind: Any, settings: Any) -> Any:
    config = AutoConfig.from_pretrained(
        settings.model,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
    )
    return kind.from_config(config, trust_remote_code=settings.trust_remote_code)


def _shape(plan: Plan, name: str, decoder: Any) -> DecoderShape:
    """The decoder's shape as its configuration gives it; sizes of its weights are not known."""
    config, lora = decoder.config.get_text_config(), plan.config.decoders[name].lora
    num_heads = config.num_attention_heads
    num_layers = config.num_hidden_layers
    return DecoderShape(
        hidden_size=config.hidden_size,
        embedding_rms=1.0,
        mean_embedding=torch.ones(config.hidden_size),
        cache=CacheShape(
            num_layers=num_layers,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // num_heads,
            key_rms=(1.0,) * num_layers,
            value_rms=(1.0,) * num_layers,
        ),
        linears=LoraSlots(decoder, lora.targets).features if lora.rank else {},
    )
