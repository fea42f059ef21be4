"""Models of other families, small and random: what is read through parts is what the whole model
reads, and a deep prefix says the same wherever it stands."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from test_deep_prefix import EXAMPLES, replayed
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from latentwire.config import DecoderConfig
from latentwire.data.batch import prompt_batch
from latentwire.data.loader import text_batch
from latentwire.data.prompts import DecoderPrompts
from latentwire.decoders.cache import context_window
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.decoders.generation import greedy
from latentwire.decoders.loading import load_decoder
from latentwire.decoders.rotation import rotation_of
from latentwire.wire.backbones import longest_text, transformer_layers

_COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    # Learned positions, and no layers named.
    "biogpt": ("BioGpt", {}),
    "cohere": ("Cohere", {}),  # neighbours turned against each other
    "falcon": ("Falcon", {"num_ln_in_parallel_attn": 1}),
    "gemma": ("Gemma", {"head_dim": 8}),  # scales its embeddings
    # Neighbours, and half a key.
    "glm": ("Glm", {"head_dim": 8, "partial_rotary_factor": 0.5, "attention_bias": True}),
    "gpt2": ("GPT2", _GPT2),  # learned positions
    "gpt_neox": ("GPTNeoX", {"rotary_pct": 0.25}),  # a quarter of a key
    "granite": ("Granite", {"embedding_multiplier": 3.0, "logits_scaling": 2.0}),
    "mixtral": ("Mixtral", {"num_local_experts": 2}),
    "olmo2": ("Olmo2", {}),  # normalises keys
    "opt": ("OPT", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "phi": ("Phi", {"partial_rotary_factor": 0.5}),  # half a key
    "phi3": ("Phi3", {}),  # keys and values from one projection
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "stablelm": ("StableLm", {"partial_rotary_factor": 0.25}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1]}),  # a layer that turns no keys
    "starcoder2": ("Starcoder2", {"sliding_window": None}),
}


@pytest.fixture(params=sorted(FAMILIES))
def decoder(pair: Path, request: pytest.FixtureRequest) -> FrozenDecoder:
    base = load_decoder(
        "base",
        DecoderConfig(model=str(pair / "llama")),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    family, own = FAMILIES[request.param]
    settings = _COMMON | own | {"vocab_size": base.inputs.vocabulary}
    torch.manual_seed(0)
    config = getattr(hf, f"{family}Config")(**settings)
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # of the size that training gives them
            if parameter.ndim > 1:
                parameter.mul_(5)
            elif name.endswith("k_proj.bias"):
                parameter[-1] = 60  # as large as some models' are, in a number that is not turned
    return FrozenDecoder(request.param, model, base.tokenizer)


@torch.no_grad()
def test_text_is_read_as_the_whole_model_reads_it(decoder: FrozenDecoder) -> None:
    prompts = DecoderPrompts(decoder.tokenizer)
    texts = [prompts.text(example) for example in EXAMPLES]
    found = decoder.answer(text_batch(texts, pad=prompts.pad)).logits.split(
        [len(text.answer) for text in texts]
    )
    for text, logits in zip(texts, found, strict=True):
        asked = [*text.before, *text.slot, *text.after]
        ids = torch.tensor([[*asked, *text.answer]])
        whole = decoder.model(input_ids=ids).logits[0, len(asked) - 1 : -1]
        torch.testing.assert_close(logits, whole, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_text_through_the_wires_way_is_the_text(decoder: FrozenDecoder) -> None:
    prompts = DecoderPrompts(decoder.tokenizer)
    rows, wire, tokens = replayed(decoder)
    batch, text = prompt_batch(rows, pad=prompts.pad), text_batch(tokens, pad=prompts.pad)
    expected = decoder.answer(text).logits
    torch.testing.assert_close(decoder.answer(batch, wire).logits, expected, atol=1e-3, rtol=1e-3)
    asked = prompt_batch(rows, pad=prompts.pad, answers=False)
    said = text_batch(tokens, pad=prompts.pad, answers=False)
    through = greedy(decoder, asked, ends=prompts.ends, max_new_tokens=6, wire=wire)
    assert torch.equal(through, greedy(decoder, said, ends=prompts.ends, max_new_tokens=6))


@torch.no_grad()
def test_keys_come_to_rest(decoder: FrozenDecoder, caplog: pytest.LogCaptureFixture) -> None:
    """A vector repeated has the same states everywhere, and so the same keys before they turn."""
    rotate = decoder._rotate
    cache = decoder._filled(decoder.inputs.repeated(6))
    if decoder.name in ("biogpt", "gpt2", "opt"):
        assert rotate is None, "positions are added to its inputs"
        assert "keys are turned" not in caplog.text
        return
    assert rotate is not None
    turned = [way is not None for way in rotate.ways]
    assert turned == ([True, False, True] if decoder.name == "smollm3" else [True] * 3)
    stacked = torch.stack([layer.keys for layer in cache.layers])
    resting = rotate(stacked, -torch.arange(6))
    torch.testing.assert_close(
        resting, resting[..., :1, :].expand_as(resting), atol=1e-3, rtol=1e-3
    )
    for keys, is_turned in zip(stacked, turned, strict=True):
        assert is_turned != torch.allclose(keys, keys[..., :1, :].expand_as(keys), atol=1e-2)


@torch.no_grad()
def test_inputs_are_known_as_the_model_gets_them(decoder: FrozenDecoder) -> None:
    ids = torch.arange(decoder.inputs.vocabulary)
    every = decoder.model.get_input_embeddings()(ids)
    torch.testing.assert_close(decoder.inputs.whole, every)
    assert decoder.inputs.rms == pytest.approx(float(every.square().mean().sqrt()), rel=1e-5)
    torch.testing.assert_close(decoder.inputs.mean, every.mean(0), atol=1e-5, rtol=1e-4)


def test_every_family_shows_its_layers(decoder: FrozenDecoder) -> None:
    assert decoder.num_layers == len(transformer_layers(decoder.model.base_model)) == 3


def test_layers_that_read_images_are_none_of_a_decoders() -> None:
    small = {key: _COMMON[key] for key in ("hidden_size", "intermediate_size")}
    vision = small | {"num_hidden_layers": 4, "num_attention_heads": 4}
    config = hf.Gemma3Config(
        text_config=_COMMON | {"head_dim": 8, "vocab_size": 40}, vision_config=vision
    )
    model = hf.AutoModelForCausalLM.from_config(config)
    assert [type(m).__name__ for m in transformer_layers(model)] == ["Gemma3DecoderLayer"] * 3


@torch.no_grad()
def test_keys_that_turn_in_a_way_of_their_own_are_told(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    keys = torch.randn(1, 2, 1, 8).expand(1, 2, 6, 8)
    angles = torch.arange(6)[:, None] * torch.tensor([1.0, 0.1])
    one, other = keys[..., :2], keys[..., 2:4]
    turned = [one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()]
    found = rotation_of("x", [], [torch.cat([*turned, keys[..., 4:]], dim=-1), keys])
    assert found.ways == (None, None)
    assert "decoders.x: how keys are turned by position is not known of 1 of its 2" in caplog.text


@torch.no_grad()
def test_each_layer_may_have_angles_of_its_own() -> None:
    """As in models whose code comes with them, or with two kinds of layers."""
    config = hf.LlamaConfig(**_COMMON, vocab_size=40)
    slow, fast = (LlamaRotaryEmbedding(config) for _ in range(2))
    fast.inv_freq *= 3
    torch.manual_seed(0)
    keys = torch.randn(1, 2, 1, 8).expand(1, 2, 6, 8)
    one = rotation_of("x", [slow], [keys + torch.arange(6)[:, None]])
    assert one.ways == (None,), "not turned at all"
    place = torch.arange(6)
    turned = [apply_rotary_pos_emb(keys, keys, *m(keys, place[None]))[1] for m in (slow, fast)]
    found = rotation_of("x", [slow, fast], turned)
    for layer, part in enumerate(turned):
        torch.testing.assert_close(found.of_layer(layer, part, -place), keys)


@pytest.mark.parametrize("nested", [False, True])
def test_a_text_never_reaches_where_angles_change_for_all(nested: bool) -> None:
    """Which they do for a whole batch once a row of it is longer (LongRoPE)."""
    factors = {"long_factor": [2.0] * 4, "short_factor": [1.0] * 4}
    angles = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    config = hf.Phi3Config(
        **_COMMON, vocab_size=40, original_max_position_embeddings=64, rope_parameters=angles
    )
    if nested:
        config.rope_parameters = {"full_attention": config.rope_parameters}
    assert config.max_position_embeddings == 512
    assert context_window(config) == longest_text(config) == 64
    assert context_window(hf.Phi3Config(**_COMMON, vocab_size=40)) == 512
