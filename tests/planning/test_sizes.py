"""Shapes and parameter counts, against published numbers and against the modules themselves."""

import json
from pathlib import Path

import pytest
import torch
from conftest import small_overrides
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from latentwire import config_file
from latentwire.config import Config, ConfigError
from latentwire.data.encoder_texts import num_positions
from latentwire.data.hub import offline
from latentwire.decoders.lora import LoraSlots
from latentwire.distributed import topology
from latentwire.planning import batch, shapes
from latentwire.planning.memory import unit_sizes
from latentwire.planning.scaling import known
from latentwire.wire.deep_prefix import CacheShape
from latentwire.wire.unit import DecoderShape, DecoderUnit
from latentwire.wire.wire import SharedUnit

PUBLISHED = {
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
}
"""Parameters as the models' pages count them."""
VARIANTS = {
    "smoke": [],
    "lora": ["encoder.lora.rank=4", "decoders.qwen.lora.rank=3"],
    "some lora": ["decoders.llama.lora.rank=3", "decoders.llama.lora.targets=q_proj,v_proj"],
    "queries": ["wire.pooling=queries", "wire.num_latents=8"],
    "mean, gist": ["wire.pooling=mean", "gist.use_gist_head=true", "gist.layers=2"],
    "stq": ["encoder.kind=stq", "encoder.layers=0,1"],
    "byte": ["encoder.kind=byte"],
    "private, refiner": ["wire.latent_private_len=2", "wire.refiner.layers=2"],
    "slots": ["adapter.deep_prefix_len=8", "adapter.use_soft_prompt=false"],
    "frame": ["adapter.use_frame=true", "adapter.use_deep_prefix=false"],
}


def load(pair: Path, tmp_path: Path, *more: str) -> Config:
    return config_file.load("smoke", small_overrides(pair, tmp_path, *more))


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_shipped_shape_has_the_published_size(model: str) -> None:
    found = shapes.find(model, ask_hub=False)
    assert found.shape is not None
    assert found.shape.num_parameters == PUBLISHED[model]


@pytest.mark.parametrize("recipe", ["squad_8b", "hotpot_8b"])
def test_every_model_of_the_recipes_is_shipped(recipe: str) -> None:
    models = known(config_file.load(recipe, []))
    assert models.encoder is not None and len(models.decoders) == 2


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_a_folder_has_its_models_size(pair: Path, name: str) -> None:
    shape = shapes.find(str(pair / name)).shape
    assert shape is not None
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(pair / name)
        model = AutoModelForCausalLM.from_config(config)
        body = AutoModel.from_config(config)
    assert shape.num_parameters == sum(p.numel() for p in model.parameters())
    assert shape.backbone == sum(p.numel() for p in body.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_units_have_their_modules_sizes(pair: Path, tmp_path: Path, variant: str) -> None:
    """Trained and frozen parameters, one for one."""
    config = load(pair, tmp_path, *VARIANTS[variant])
    sizes = unit_sizes(config, known(config))
    body = None
    with torch.device("meta"):
        if config.encoder.kind != "byte":
            body = AutoModel.from_config(AutoConfig.from_pretrained(config.encoder.model))
        shared = SharedUnit(config, num_lead=0, model=body)
        every = sum(p.numel() for p in shared.parameters())
        trained = sum(p.numel() for p in shared.parameters() if p.requires_grad)
        assert (sizes["encoder"].trained, sizes["encoder"].total) == (trained, every)
        for name, settings in config.decoders.items():
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(settings.model))
            own = model.config
            layers = own.num_hidden_layers
            shape = DecoderShape(
                hidden_size=own.hidden_size,
                embedding_rms=1.0,
                mean_embedding=torch.ones(own.hidden_size),
                cache=CacheShape(
                    num_layers=layers,
                    num_kv_heads=own.num_key_value_heads,
                    head_dim=getattr(own, "head_dim", None)
                    or own.hidden_size // own.num_attention_heads,
                    key_rms=(1.0,) * layers,
                    value_rms=(1.0,) * layers,
                ),
                linears=LoraSlots(model, settings.lora.targets).features
                if settings.lora.rank
                else {},
            )
            unit = DecoderUnit(shape, config, lora=settings.lora)
            expected = sum(p.numel() for p in unit.parameters())
            assert sizes[f"adapter_{name}"].trained == expected


@pytest.mark.parametrize("variant", ["smoke", "slots", "frame", "private, refiner", "queries"])
def test_a_wire_takes_the_positions_it_takes(pair: Path, tmp_path: Path, variant: str) -> None:
    config = load(pair, tmp_path, *VARIANTS[variant], "wire.ratio=5")
    layout = topology.plan(config.decoders, placement="separate", world_size=2)
    step = batch.StepShape(batch_size=12, ratio=5)
    at = batch.Lengths(context=101, answer=5)
    read = batch.decoder_read(config, layout, "qwen", step, at)
    latents = batch.num_latents(config, step, 101)
    assert read.slots == num_positions(latents, config.wire, config.adapter)


def test_what_a_plan_cannot_know_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"n_embd": 768, "vocab_size": 100}))
    with pytest.raises(ConfigError, match="no hidden_size, intermediate_size"):
        shapes.find(str(tmp_path))
    entry = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 100,
        "num_experts": 8,
    }
    with pytest.raises(ConfigError, match="num_experts: 8"):
        shapes.parse(entry, "x")


def test_an_unreachable_hub_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert offline()
    found = shapes.find("nobody/nothing")
    assert found.shape is None
    assert "HF_HUB_OFFLINE" in found.origin
