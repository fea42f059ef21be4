"""Weights read shard by shard: as transformers reads them, from any files, and never whole."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from anonymous import AnonymousPeak, anonymous_bytes
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
)

from latentwire.config import ConfigError, DecoderConfig
from latentwire.data.batch import PrefixRow, PromptRow, prompt_batch
from latentwire.decoders.copy_ranks import CopyRanks
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.decoders.generation import greedy
from latentwire.decoders.loading import load_decoder
from latentwire.distributed.groups import ProcessGroups
from latentwire.distributed.topology import plan
from latentwire.testing import run_distributed
from latentwire.wire.unit import Injection

CPU = torch.device("cpu")


def copy_ranks(config: DecoderConfig, world_size: int) -> CopyRanks:
    topology = plan({"one": config}, placement="colocated", world_size=world_size)
    copy = ProcessGroups(topology, device=CPU, timeout=60).copy_of("one")
    assert copy is not None
    return CopyRanks(mesh=copy.mesh, bookkeeping=copy.bookkeeping)


def load(folder: Path, world_size: int, *, dtype: torch.dtype, **settings: Any) -> FrozenDecoder:
    """The decoder of a folder over ``world_size`` ranks, or whole with one."""
    config = DecoderConfig(model=str(folder), shard=world_size, **settings)
    ranks = copy_ranks(config, world_size) if world_size > 1 else None
    return load_decoder("one", config, dtype=dtype, device=CPU, ranks=ranks)


def whole_state(decoder: FrozenDecoder) -> dict[str, Tensor]:
    """Every weight and buffer, gathered."""
    tensors = decoder.model.state_dict() | dict(decoder.model.named_buffers())
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in tensors.items()
    }


def made_on_rank(rank: int, world_size: int, folders: dict[str, str]) -> dict[str, Any]:
    """What ranks hold together of each folder's decoder, and how much of it each."""
    found: dict[str, Any] = {}
    for name, folder in folders.items():
        dtype = torch.bfloat16 if "bf16" in name else torch.float32
        decoder = load(Path(folder), world_size, dtype=dtype)
        model = decoder.model
        state = whole_state(decoder)
        found |= {f"{name}:{key}": tensor for key, tensor in state.items()}
        own = sum(p.to_local().numel() for p in model.parameters())
        found[f"{name}/own"] = torch.tensor(own)
        found[f"{name}/units"] = torch.tensor(
            sum(isinstance(module, FSDPModule) for module in model.modules())
        )
        found[f"{name}/rms"] = torch.tensor(decoder.inputs.rms)
        found[f"{name}/mean"] = decoder.inputs.mean
        # Ranks ask for unequal numbers.
        found[f"{name}/looked up"] = decoder.embed(torch.arange(7 + rank)[None])
        found[f"{name}/table"] = decoder.inputs.whole
    return {key: tensor.contiguous() for key, tensor in found.items()}


def variants(pair: Path, root: Path) -> dict[str, str]:
    """The same small models saved in other ways, by what is different."""
    found = {"tied": str(pair / "qwen"), "tied bf16": str(pair / "qwen")}
    model = AutoModelForCausalLM.from_pretrained(pair / "llama")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
    for name, size in (("untied", "1GB"), ("indexed", "50KB")):
        model.save_pretrained(root / name, max_shard_size=size)
        found[name] = str(root / name)
    assert len(list((root / "indexed").glob("model-*.safetensors"))) > 2
    settings = {"vocab_size": model.config.vocab_size, "head_dim": 8, "pad_token_id": 0}
    settings |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    for name, is_tied in (("scaled tied", True), ("scaled bf16", False)):
        config = GemmaConfig(**settings, tie_word_embeddings=is_tied)
        GemmaForCausalLM(config).save_pretrained(root / name)
        found[name] = str(root / name)
    for folder in ("untied", "indexed", "scaled tied", "scaled bf16"):
        for file in (pair / "llama").glob("tokenizer*"):
            shutil.copy(file, root / folder / file.name)
    return found


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_hold_together_what_one_would(world_size: int, pair: Path, tmp_path: Path) -> None:
    folders = variants(pair, tmp_path)
    ranks = run_distributed(made_on_rank, world_size, folders)
    for name, folder in folders.items():
        dtype = torch.bfloat16 if "bf16" in name else torch.float32
        decoder = load(Path(folder), 1, dtype=dtype)
        expected = decoder.model.state_dict() | dict(decoder.model.named_buffers())
        for rank in ranks:
            mine = {k.removeprefix(f"{name}:") for k in rank if k.startswith(f"{name}:")}
            assert mine == expected.keys()
            for key, tensor in expected.items():
                found = rank[f"{name}:{key}"]
                assert found.dtype == tensor.dtype, key
                assert torch.equal(found, tensor), key
            assert float(rank[f"{name}/rms"]) == pytest.approx(decoder.inputs.rms, rel=1e-7)
            torch.testing.assert_close(rank[f"{name}/mean"], decoder.inputs.mean)
            assert torch.equal(rank[f"{name}/table"], decoder.inputs.whole)
        for index, rank in enumerate(ranks):
            own = decoder.embed(torch.arange(7 + index)[None])
            assert torch.equal(rank[f"{name}/looked up"], own)
        number = sum(p.numel() for p in decoder.model.parameters())
        assert sum(int(rank[f"{name}/own"]) for rank in ranks) == number
        assert max(int(rank[f"{name}/own"]) for rank in ranks) < 1.1 * number / world_size
        # Two layers and the rest; with tables of their own for input and output two more.
        assert int(ranks[0][f"{name}/units"]) == (3 if "tied" in name.split() else 5)


def refused_on_rank(rank: int, world_size: int, folders: list[str]) -> list[str]:
    found = []
    for folder in folders:
        try:
            load(Path(folder), world_size, dtype=torch.float32)
        except ConfigError as error:
            found += error.problems
    return found


def test_files_that_do_not_hold_the_weights_are_refused(pair: Path, tmp_path: Path) -> None:
    changes: dict[str, dict[str, Any]] = {
        "more": {"num_hidden_layers": 3},
        "wider": {"intermediate_size": 128},
        "adapted": {},
    }
    for name, change in changes.items():
        shutil.copytree(pair / "qwen", tmp_path / name)
        path = tmp_path / name / "config.json"
        tree = json.loads(path.read_text()) | change
        if "layer_types" in tree:
            tree["layer_types"] = tree["layer_types"][:1] * tree["num_hidden_layers"]
        path.write_text(json.dumps(tree))
    (tmp_path / "adapted" / "adapter_config.json").write_text("{}")
    folders = [str(tmp_path / name) for name in changes]
    for problems in run_distributed(refused_on_rank, 2, folders):
        assert len(problems) == 3
        assert all(p.startswith("decoders.one.shard: 2, but") for p in problems)
        assert "holds no model.layers.2." in problems[0] and "more in its files" in problems[0]
        assert "where its configuration says (128, 48); use 1" in problems[1]
        assert "comes with a peft adapter; use 1" in problems[2]


def written_on_rank(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """Ranks whose prompts differ in number and length, and end after different tokens."""
    decoder = load(Path(folder), world_size, dtype=torch.float32)
    before = tuple(range(3 + 2 * rank))
    rows = [
        PromptRow(prefix=PrefixRow(before=(*before, row)), after=(5, 6), answer=())
        for row in range(1 + rank)
    ]
    batch = prompt_batch(rows, pad=0, answers=False)
    free = greedy(decoder, batch, ends=[-1], max_new_tokens=6)
    # What rank 0 would end with at once is nothing that rank 1 says.
    eos = int(free[0, 0])
    ended = greedy(decoder, batch, ends=[eos if rank == 0 else -1], max_new_tokens=6)
    return {"free": free.tolist(), "ended": ended.tolist(), "eos": eos}


def test_ranks_that_are_done_wait_for_those_that_write(pair: Path) -> None:
    ranks = run_distributed(written_on_rank, 2, str(pair / "llama"))
    for rank in range(2):
        alone = run_distributed(written_alone, 1, str(pair / "llama"), rank)[0]
        assert ranks[rank]["free"] == alone["free"]
    assert ranks[0]["ended"] == [[ranks[0]["eos"]] * 6]
    assert ranks[1]["ended"] == ranks[1]["free"]


def written_alone(rank: int, world_size: int, folder: str, place: int) -> dict[str, Any]:
    """What the rank at ``place`` writes with all of the decoder."""
    return written_on_rank(place, 1, folder)


NF4_SIZES = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4}


def loss_gradient(decoder: FrozenDecoder) -> dict[str, Tensor]:
    """Logits after a wire of seven vectors, and a loss's gradient at it."""
    torch.manual_seed(0)
    soft = torch.randn(1, 7, decoder.inputs.hidden_size, requires_grad=True)
    row = PromptRow(
        prefix=PrefixRow(before=(1, 2), soft_row=0, num_soft=7), after=(3, 4), answer=(5, 6, 7)
    )
    logits = decoder.answer(prompt_batch([row], pad=0), Injection(vectors=soft)).logits
    (grad,) = torch.autograd.grad(logits.square().mean(), soft)
    return {"logits": logits.detach(), "grad": grad}


def nf4_on_rank(rank: int, world_size: int, folder: str, recomputed: bool) -> dict[str, Tensor]:
    return loss_gradient(
        load(
            Path(folder),
            world_size,
            dtype=torch.float32,
            quantization="nf4",
            gradient_checkpointing=recomputed,
        )
    )


def test_rows_in_4_bits_are_those_of_the_whole_weight(pair: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = AutoConfig.from_pretrained(pair / "llama")
    for key, value in NF4_SIZES.items():
        setattr(config, key, value)
    config.head_dim = 16
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(pair / "llama").save_pretrained(tmp_path)
    for recomputed in (False, True):
        sharded = run_distributed(nf4_on_rank, 3, str(tmp_path), recomputed)
        whole = run_distributed(nf4_on_rank, 1, str(tmp_path), recomputed)[0]
        for key in whole:
            torch.testing.assert_close(sharded[0][key], whole[key], rtol=1e-4, atol=1e-6)


def nf4_refused_on_rank(rank: int, world_size: int, folder: str) -> list[str]:
    try:
        load(Path(folder), world_size, dtype=torch.float32, quantization="nf4")
    except ConfigError as error:
        return error.problems
    return []


def test_rows_that_a_scale_would_straddle_are_refused(pair: Path) -> None:
    pytest.importorskip("bitsandbytes")
    (problem,) = run_distributed(nf4_refused_on_rank, 2, str(pair / "llama"))[0]
    assert problem.startswith("decoders.one.quantization: 'nf4', but rows of ")
    assert problem.endswith("use none, or shard=1")


def peak_on_rank(rank: int, world_size: int, small: str, folder: str) -> dict[str, int]:
    """Bytes that loading takes at its peak, and what is taken more after a forward and backward;
    what a first load imports is loaded before."""
    loss_gradient(load(Path(small), world_size, dtype=torch.bfloat16))
    with AnonymousPeak() as peak:
        decoder = load(Path(folder), world_size, dtype=torch.bfloat16)
    before = anonymous_bytes()
    loss_gradient(decoder)
    return {"load": peak.above, "kept": anonymous_bytes() - before}


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_no_rank_holds_more_than_its_share(stored: torch.dtype, pair: Path, tmp_path: Path) -> None:
    """Of 50 million weights: 100 MB in bf16."""
    config = LlamaConfig(
        vocab_size=16000,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=stored)
    model.save_pretrained(tmp_path)
    size = 2 * sum(p.numel() for p in model.parameters())
    del model
    for file in (pair / "llama").glob("tokenizer*"):
        shutil.copy(file, tmp_path / file.name)
    arguments = (str(pair / "llama"), str(tmp_path))
    whole = run_distributed(peak_on_rank, 1, *arguments)[0]["load"]
    found = run_distributed(peak_on_rank, 2, *arguments)
    ranks, kept = ([rank[key] for rank in found] for key in ("load", "kept"))
    mebibytes = [round(number / 2**20) for number in (size, whole, *ranks, *kept)]
    print(f"{stored}: weights, whole, of each rank, kept by it, in MiB: {mebibytes}")
    assert max(kept) < 0.5 * size, "what was gathered is given back"
    if stored == torch.bfloat16:
        # Nothing is converted, so the weights stay mapped from the file, whole or not.
        assert max(whole, *ranks) < 0.1 * size
    else:
        assert 0.9 * size < whole
        assert max(ranks) < 0.65 * whole
