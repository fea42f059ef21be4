"""Compiled layers: the same numbers, one compilation for all layers and lengths."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from latentwire.config import ConfigError, DecoderConfig
from latentwire.data.batch import PrefixRow, PromptRow, prompt_batch
from latentwire.decoders.compiled import compile_layers
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.decoders.generation import greedy
from latentwire.decoders.loading import load_decoder
from latentwire.decoders.recompute import recompute_layers
from latentwire.wire.unit import Injection

CPU = torch.device("cpu")


def load(pair: Path) -> FrozenDecoder:
    config = DecoderConfig(model=str(pair / "llama"))
    return load_decoder("llama", config, dtype=torch.float32, device=CPU)


def read(decoder: FrozenDecoder, *, size: int) -> dict[str, Tensor]:
    """A wire of some length read with a deep prefix, and twice passed backward."""
    rows = [
        PromptRow(
            prefix=PrefixRow(before=tuple(range(3, 13)), num_constant=10, soft_row=i, num_soft=n),
            after=tuple(range(20, 20 + size)),
            answer=(20, 21, 1),
        )
        for i, n in enumerate((size, size - 1))
        for _ in range(2)
    ]
    shape = decoder.shape(with_cache=True).cache
    assert shape is not None
    torch.manual_seed(size)
    vectors = (
        decoder.inputs.rms * torch.randn(2, size, decoder.inputs.hidden_size)
    ).requires_grad_()
    added = torch.randn(2, size, shape.num_layers, 2, shape.num_kv_heads, shape.head_dim)
    wire = Injection(vectors=vectors, added=added.requires_grad_())
    said = decoder.answer(prompt_batch(rows, pad=2), wire)
    losses = said.logits.logsumexp(-1)
    first = torch.autograd.grad(losses[0], [vectors, added], retain_graph=True)
    whole = torch.autograd.grad(losses.sum(), [vectors, added])
    with torch.no_grad():
        asked = prompt_batch(rows, pad=2, answers=False)
        written = greedy(decoder, asked, ends=[1], max_new_tokens=3, wire=wire)
    return {
        "logits": said.logits.detach(),
        "written": written.float(),
        **{f"first {i}": part for i, part in enumerate(first)},
        **{f"whole {i}": part for i, part in enumerate(whole)},
    }


@pytest.mark.slow
@pytest.mark.parametrize("is_recomputed", [False, True])
def test_compiled_layers_say_the_same(pair: Path, *, is_recomputed: bool) -> None:
    torch._dynamo.reset()
    plain, decoder = load(pair), load(pair)
    counter = CompileCounterWithBackend("aot_eager")
    compile_layers("llama", decoder.model, device=CPU, backend=counter)
    if is_recomputed:
        recompute_layers("llama", decoder.model)
    counts = []
    for size in (5, 8):
        found, expected = read(decoder, size=size), read(plain, size=size)
        for name, value in expected.items():
            assert value.abs().sum() > 0
            torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-4, msg=name)
        counts.append(counter.frame_count)
    assert 2 < counts[0] == counts[1], "lengths compile nothing new"
    torch._dynamo.reset()


def test_a_machine_without_a_compiler_says_so(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("no working C++ compiler found\nand more")

    torch._dynamo.reset()
    with pytest.raises(ConfigError, match=r"decoders\.llama\.compile: true, but .*C\+\+ compiler"):
        compile_layers("llama", load(pair).model, device=CPU, backend=broken)


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("decoders.qwen.quantization=nf4", "quantization"),
        ("decoders.qwen.shard=2", "shard"),
        ("decoders.qwen.lora.rank=2", "lora"),
    ],
)
def test_what_is_not_compiled_is_refused(override: str, what: str) -> None:
    from latentwire import config_file

    with pytest.raises(ConfigError, match=rf"decoders\.qwen\.compile: true with .*{what}"):
        config_file.load("smoke", ["decoders.qwen.compile=true", override])
