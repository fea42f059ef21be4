"""A decoder's unit: what it reads and where, for each way into the decoder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from config_cases import MINIMAL
from torch import Tensor

from latentwire import config_file
from latentwire.config import Config, LoraConfig
from latentwire.data.encoder_texts import num_positions
from latentwire.wire.deep_prefix import CacheShape
from latentwire.wire.unit import DecoderShape, DecoderUnit, Injection

D_Z, HIDDEN, LAYERS, HEADS, HEAD_DIM, GIST_LEN = 16, 24, 3, 2, 5, 7
COUNTS = torch.tensor([5, 2, 1])
SHAPE = DecoderShape(
    hidden_size=HIDDEN,
    embedding_rms=0.03,
    mean_embedding=torch.linspace(-0.01, 0.02, HIDDEN),
    cache=CacheShape(
        num_layers=LAYERS,
        num_kv_heads=HEADS,
        head_dim=HEAD_DIM,
        key_rms=(1.0, 2.0, 3.0),
        value_rms=(0.1, 0.2, 0.3),
    ),
    linears={"layers.0.q_proj": (24, 12), "layers.1.q_proj": (24, 12)},
)
PATHS = {
    "soft": [],
    "deep": ["adapter.use_deep_prefix=true", "adapter.use_soft_prompt=false"],
    "both": ["adapter.use_deep_prefix=true"],
}
FOUR = "adapter.deep_prefix_len=4"
FRAMELESS = "adapter.use_frame=false"
WAYS = PATHS | {"deep, 4": [*PATHS["deep"], FOUR], "both, 4": [*PATHS["both"], FOUR]}
OF_WAYS = [pytest.param(overrides, id=name) for name, overrides in WAYS.items()]
EVERY = [
    *OF_WAYS,
    *(pytest.param([*more, FRAMELESS], id=f"{name}, no frame") for name, more in WAYS.items()),
]


def config(tmp_path: Path, *overrides: str) -> Config:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    sizes = [f"wire.d_z={D_Z}", f"gist.gist_len={GIST_LEN}", "gist.hidden=8"]
    return config_file.load(str(path), [*sizes, *overrides])


def unit(settings: Config, *, lora: int = 0) -> DecoderUnit:
    torch.manual_seed(0)
    made = DecoderUnit(SHAPE, settings, lora=LoraConfig(rank=lora, alpha=8.0))
    if made.lora is not None:
        for name, parameter in made.lora.named_parameters():
            if name.startswith("up"):
                torch.nn.init.normal_(parameter)  # trained: zero has no gradient further down
    return made


def read(made: DecoderUnit, latents: Tensor, counts: Tensor = COUNTS) -> Injection:
    return Injection(**made(latents, counts))


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(3, 5, D_Z, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("overrides", EVERY)
def test_where_everything_stands(overrides: list[str], tmp_path: Path, latents: Tensor) -> None:
    settings = config(tmp_path, *overrides)
    made, adapter = unit(settings), settings.adapter
    wire = read(made, latents)
    length, begin = adapter.deep_prefix_len, int(adapter.use_frame)
    for row, count in enumerate(COUNTS.tolist()):
        num_soft = count if adapter.use_soft_prompt or not length else 0
        body = length + num_soft
        assert body + 2 * begin == num_positions(count, settings.wire, adapter)
        vectors = wire.vectors[row]
        if made.frame is not None:
            assert torch.equal(vectors[0], made.frame.begin)
            assert torch.equal(vectors[body + 1], made.frame.end)
        vectors = vectors[begin : begin + body]
        if made.adapter is not None:
            expected = made.adapter(latents[row : row + 1, :count])[0]
            torch.testing.assert_close(vectors[length:], expected)
        filled = vectors[:length] if made.adapter is not None else vectors
        if made.filler is not None:
            assert torch.equal(filled, made.filler.expand_as(filled))
        if not adapter.use_deep_prefix:
            assert wire.added is None
            continue
        assert wire.added is not None
        reached = wire.added[row].flatten(1).any(-1).tolist()
        num_deep = length or count
        # Neither at begin, nor at the soft prompt behind it, at the end or beyond it.
        behind = len(reached) - begin - num_deep
        assert reached == [False] * begin + [True] * num_deep + [False] * behind
    if wire.added is not None:
        assert wire.added.shape == (3, wire.vectors.shape[1], LAYERS, 2, HEADS, HEAD_DIM)


@pytest.mark.parametrize("overrides", OF_WAYS)
def test_without_a_frame_the_same_stands_without_its_ends(
    overrides: list[str], tmp_path: Path, latents: Tensor
) -> None:
    framed, bare = (unit(config(tmp_path, *overrides, *more)) for more in ([], [FRAMELESS]))
    states = framed.state_dict()
    ends = {name for name in states if name.startswith("frame.")}
    assert ends == {"frame.begin", "frame.end"}
    bare.load_state_dict({name: states[name] for name in states.keys() - ends})
    whole, without = read(framed, latents), read(bare, latents)
    assert without.vectors.shape == (3, whole.vectors.shape[1] - 2, HIDDEN)
    num_soft = int(COUNTS.max()) if bare.adapter is not None or bare.prefix_slots is None else 0
    assert without.vectors.shape[1] == num_soft + (4 if bare.prefix_slots is not None else 0)
    for row, count in enumerate(COUNTS.tolist()):
        body = without.vectors.shape[1] - num_soft + min(count, num_soft)
        assert torch.equal(without.vectors[row, :body], whole.vectors[row, 1 : 1 + body])
    if whole.added is None:
        assert without.added is None
    else:
        assert without.added is not None
        assert torch.equal(without.added, whole.added[:, 1:-1])


def test_additions_have_the_size_of_what_is_there(tmp_path: Path) -> None:
    made = unit(config(tmp_path, *PATHS["both"]))
    many = torch.randn(1, 400, D_Z, generator=torch.Generator().manual_seed(1))
    added = read(made, many, torch.tensor([400])).added
    assert added is not None
    size = added[0, 1:401].square().mean((0, 3, 4)).sqrt()  # [layers, 2]
    assert SHAPE.cache is not None
    expected = torch.tensor([SHAPE.cache.key_rms, SHAPE.cache.value_rms]).T
    ratio = size / expected
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=0.4, atol=0)
    assert 0.001 < ratio.mean() < 0.05, "near zero, and not zero"


@pytest.mark.parametrize("overrides", EVERY)
def test_nothing_behind_a_wire_is_read(
    overrides: list[str], tmp_path: Path, latents: Tensor
) -> None:
    settings = config(tmp_path, *overrides)
    made = unit(settings)
    before = read(made, latents)
    changed = latents.clone()
    changed[1, 2:] = 1e4
    changed[2, 1:] = -1e4
    padded = torch.cat([changed, torch.full((3, 4, D_Z), 1e4)], dim=1)
    after = read(made, padded)
    for row, count in enumerate(COUNTS.tolist()):
        length = num_positions(count, settings.wire, settings.adapter)
        for name in ("vectors", "added", "gist"):
            one, other = getattr(before, name), getattr(after, name)
            if one is None:
                continue
            until = GIST_LEN if name == "gist" else length
            torch.testing.assert_close(other[row, :until], one[row, :until])


@pytest.mark.parametrize("overrides", EVERY)
def test_parameters_are_in_one_group_each_and_all_are_used(
    overrides: list[str], tmp_path: Path, latents: Tensor
) -> None:
    made = unit(config(tmp_path, *overrides), lora=2)
    groups = made.parameter_groups()
    names = [name for group in groups.values() for name, _ in group]
    assert len(names) == len(set(names))
    assert set(names) == dict(made.named_parameters()).keys()
    assert set(groups) == {"adapter", "prefix"}
    deep = {n for n in names if n.startswith(("prefix.", "prefix_slots.", "filler"))}
    assert {name for name, _ in groups["prefix"]} == deep
    assert bool(deep) == ("adapter.use_deep_prefix=true" in overrides)
    wire = read(made, latents)
    assert wire.gist_scale is not None
    parts = [*wire.ends, wire.gist_scale, *(part for pair in wire.lora.values() for part in pair)]
    generator = torch.Generator().manual_seed(2)
    total = sum((part * torch.randn(part.shape, generator=generator)).sum() for part in parts)
    total.backward()  # type: ignore[union-attr]
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_gist_head_guesses_in_the_decoders_space(tmp_path: Path, latents: Tensor) -> None:
    made = unit(config(tmp_path))
    wire = read(made, latents)
    assert wire.gist is not None and wire.gist_scale is not None
    assert wire.gist.shape == (3, GIST_LEN, HIDDEN)
    assert wire.gist_scale.shape == (1,) and wire.gist_scale > 0
    moved = read(made, latents.flip(1))
    assert moved.gist is not None
    assert not torch.allclose(moved.gist[0], wire.gist[0], atol=1e-4), "order counts"
    without = read(unit(config(tmp_path, "gist.use_gist_head=false")), latents)
    assert without.gist is None and without.gist_scale is None


def test_updates_carry_their_scale(tmp_path: Path, latents: Tensor) -> None:
    made = unit(config(tmp_path), lora=2)
    assert made.lora is not None
    updates = read(made, latents).lora
    assert list(updates) == list(SHAPE.linears)
    down, up = updates["layers.1.q_proj"]
    assert (down.shape, up.shape) == ((2, 24), (12, 2))
    assert torch.equal(up, made.lora.up_1 * (8.0 / 2))
    assert read(unit(config(tmp_path)), latents).lora == {}


@pytest.mark.parametrize(
    ("key", "field"),
    [("adapter.dropout", "vectors"), ("adapter.deep_prefix_dropout", "added")],
)
def test_dropout_is_for_training_only(
    key: str, field: str, tmp_path: Path, latents: Tensor
) -> None:
    made = unit(config(tmp_path, *PATHS["both"], f"{key}=0.5"))
    plain = unit(config(tmp_path, *PATHS["both"]))

    def found(one: DecoderUnit, name: str) -> Any:
        return getattr(read(one, latents), name)

    other = {"vectors": "added", "added": "vectors"}[field]
    made.train()
    assert not torch.equal(found(made, field), found(made, field)), "another mask each time"
    assert torch.equal(found(made, other), found(plain, other)), "of its own part only"
    made.eval()
    assert torch.equal(found(made, field), found(plain, field))
