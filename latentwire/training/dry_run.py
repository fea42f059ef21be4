"""``--dry-run``: the resolved configuration, the group table and the parameter counts."""

from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from latentwire import config_file
from latentwire.training import validation
from latentwire.training.held_out import draw_validation
from latentwire.training.preflight import Plan
from latentwire.wire.adapter import Adapter


def describe(plan: Plan) -> str:
    """What a run would do, as text; weights are neither loaded nor allocated."""
    config = plan.config
    lines = [yaml.safe_dump(config_file.to_tree(config), sort_keys=False)]
    lines.append(plan.topology.table())
    lines.append("")
    kind = f"LoRA rank {config.encoder.lora.rank}" if config.encoder.lora.rank else "all trained"
    lines.append(f"encoder            {_count(AutoModel, config.encoder):>15,} parameters ({kind})")
    for name, decoder in config.decoders.items():
        lines.append(
            f"decoder {name:<10} {_count(AutoModelForCausalLM, decoder):>15,} parameters (frozen)"
        )
        lines.append(f"adapter {name:<10} {_adapter(plan, name):>15,} parameters (trained)")
    lines += validation.describe(config, len(draw_validation(config)))
    return "\n".join(lines)


def _config(settings: Any) -> Any:
    return AutoConfig.from_pretrained(
        settings.model,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
    )


def _count(kind: Any, settings: Any) -> int:
    with torch.device("meta"):
        model = kind.from_config(_config(settings), trust_remote_code=settings.trust_remote_code)
    return int(model.num_parameters())


def _adapter(plan: Plan, name: str) -> int:
    config = plan.config
    with torch.device("meta"):
        adapter = Adapter(
            config.wire.d_z,
            _config(config.decoders[name]).hidden_size,
            hidden_mult=config.adapter.hidden_mult,
            embedding_rms=1.0,
        )
    return sum(parameter.numel() for parameter in adapter.parameters())
