"""``latentwire plan`` as a user calls it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from latentwire import cli, config_file
from latentwire.distributed import topology
from latentwire.planning import batch, cost, layout, scaling
from latentwire.planning.cost import Device
from latentwire.planning.memory import GIB, predict
from latentwire.planning.traffic import collectives

BIG = [
    "decoders.llama.model=meta-llama/Llama-3.1-70B-Instruct",
    "decoders.qwen.model=Qwen/Qwen2.5-72B-Instruct",
]


def plan(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = cli.main(["plan", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_plan_brings_no_torch() -> None:
    """It answers at once, on a login node too."""
    script = (
        "import sys; from latentwire import cli; cli.main(['plan', '--recipe', 'squad_8b']);"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert result.stdout.splitlines()[-1] == "[]"
    assert "peak" in result.stdout


def test_it_fits_or_not(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = plan("--recipe", "squad_8b", capsys=capsys)
    assert (code, found["fits"], found["advice"]) == (0, True, None)
    peak = max(rank["peak_bytes"] for rank in found["ranks"])
    limit = peak / GIB + 2
    # Right above what it takes it fits, right below it does not.
    assert plan("--recipe", "squad_8b", f"--gpu-memory={limit + 0.01}", capsys=capsys)[0] == 0
    code, found = plan("--recipe", "squad_8b", f"--gpu-memory={limit - 0.01}", capsys=capsys)
    assert (code, found["fits"]) == (1, False)
    assert found["advice"]["together"]["peak"] < peak


def test_frozen_weights_are_those_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    """Two bytes a parameter in bf16; in NF4 half a byte for the layers' matrices and its scales."""
    _, found = plan("--recipe", "squad_8b", capsys=capsys)
    moment = found["ranks"][0]["moments"]["optimizer"]
    assert moment["frozen weights"] == 2 * 8_030_261_248
    _, found = plan("--recipe", "squad_8b", "decoders.llama.quantization=nf4", capsys=capsys)
    embeddings = 2 * 2 * 128256 * 4096
    quantised = found["ranks"][0]["moments"]["optimizer"]["frozen weights"] - embeddings
    assert 0.5 < quantised / (8_030_261_248 - embeddings / 2) < 0.57


def test_what_it_advises_fits(capsys: pytest.CaptureFixture[str]) -> None:
    """The overrides that it names, given to it, fit; and none of them is more than needed."""
    small = ["--recipe", "squad_8b", "--gpu-memory", "30"]
    code, found = plan(*small, capsys=capsys)
    assert code == 1
    keys = found["advice"]["together"]["keys"]
    code, then = plan(*small, *keys, capsys=capsys)
    assert code == 0
    assert max(rank["peak_bytes"] for rank in then["ranks"]) == found["advice"]["together"]["peak"]
    for change in found["advice"]["alone"]:
        _, then = plan(*small, *change["keys"], capsys=capsys)
        peaks = [rank["peak_bytes"] for rank in then["ranks"]]
        assert max(peaks) == change["peak"]


def test_what_it_advises_is_not_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Compiled layers can be neither quantised nor parted."""
    compiled = [f"decoders.{name}.compile=true" for name in ("llama", "qwen")]
    small = ["--recipe", "squad_8b", "--gpu-memory", "30"]
    _, plain = plan(*small, capsys=capsys)
    _, found = plan(*small, *compiled, capsys=capsys)

    def advised(found: dict[str, Any]) -> list[list[str]]:
        together = found["advice"]["together"]
        return [c["keys"] for c in (*found["advice"]["alone"], *([together] if together else []))]

    def is_refused(keys: list[str]) -> bool:
        return any("quantization" in key or "shard=" in key for key in keys)

    assert any(is_refused(keys) for keys in advised(plain)), "or this shows nothing"
    assert not any(is_refused(keys) for keys in advised(found))
    for keys in advised(found):
        config_file.load("squad_8b", [*compiled, *keys])


def test_longer_texts_and_larger_batches_take_more(capsys: pytest.CaptureFixture[str]) -> None:
    def peak(*more: str) -> int:
        _, found = plan("--recipe", "squad_8b", *more, capsys=capsys)
        return max(rank["peak_bytes"] for rank in found["ranks"])

    usual = peak("--context-tokens", "512")
    assert peak("--context-tokens", "1024") > usual
    assert peak("--context-tokens", "512", "--prompt-tokens", "300") > usual
    assert peak("--context-tokens", "512", "train.batch_size=96") > usual
    assert peak("--context-tokens", "512", "decoders.llama.gradient_checkpointing=true") <= usual
    assert peak("--context-tokens", "512", "train.accumulation=2") < usual


def test_groups_that_straddle_nodes_are_warned_of() -> None:
    uneven = config_file.load("squad_8b", ["decoders.llama.ranks=6"])
    nodes = layout.Nodes(num_nodes=2, gpus_per_node=8)
    topo = layout.lay_out(uneven, nodes)
    (warning,) = layout.warnings(uneven, topo, nodes)
    assert "'qwen' has 2, 8 ranks" in warning
    even = config_file.load("squad_8b", [])
    topo = layout.lay_out(even, nodes)
    assert layout.warnings(even, topo, nodes) == []
    # Copies of eight on nodes of six.
    sharded = scaling.sharded(config_file.load("squad_8b", []), 8)
    six = layout.Nodes(num_nodes=8, gpus_per_node=6)
    topo = layout.lay_out(sharded, six)
    assert all("lies across nodes" in one for one in layout.warnings(sharded, topo, six))
    assert len(layout.warnings(sharded, topo, six)) == 2


def test_ranks_follow_measured_costs(capsys: pytest.CaptureFixture[str]) -> None:
    """A decoder three times as slow gets three quarters of the ranks."""
    costs = ["--cost", "llama=0.3", "--cost", "qwen=0.1"]
    _, found = plan("--recipe", "squad_8b", *costs, capsys=capsys)
    assert found["costs"]["shares"] == {"llama": 3.0, "qwen": 1.0}
    assert found["costs"]["split"]["ranks"] == {"llama": 6, "qwen": 2}
    config = config_file.load("squad_8b", ["decoders.llama.share=3", "decoders.qwen.share=1"])
    topo = topology.plan(config.decoders, placement="separate", world_size=8)
    assert topo.group("llama").size == 6


def test_a_split_shares_out_the_batch_evenly() -> None:
    """5 + 3 would suit the costs, but 5 ranks cannot share out 24 examples."""
    config = config_file.load("squad_8b", [])
    topo = topology.plan(config.decoders, placement="separate", world_size=8)
    split = cost.best_split(config, topo, {"llama": 5.0, "qwen": 3.0}, micro_batch=24)
    assert split is not None
    assert split.ranks == {"llama": 4, "qwen": 4}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "3"], "does not divide by the 24 ranks"),
        (["--nodes", "0"], "--nodes: 0 should be above 0"),
        (["--nodes", "1000000000"], "should be 1048576 GPUs at most"),
        *(
            ([f"--{name}={number}"], f"--{name}: {number} should be ")
            for name in ("gpu-memory", "reserve", "flops", "latency")
            for number in ("nan", "inf", "-5.0")
        ),
        (["--cost", "llama=nan", "--cost", "qwen=1"], "--cost llama=nan: should name"),
        (["--scaling"], "--scaling: prints a table of its own recipe, not of squad_8b"),
        (["--cost", "llama=1"], "qwen has none"),
        (["--cost", "nobody=1"], "should name one of llama, qwen"),
        (["--nonsense"], "unrecognized arguments"),
        (["train.batch_sise=3"], "unknown key"),
    ],
)
def test_bad_input_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["train.batch_size=40"] if arguments == ["--nodes", "3"] else []
    assert cli.main(["plan", "--recipe", "squad_8b", *arguments, *more]) == 2
    assert message in capsys.readouterr().err


def test_the_table_of_scaling_refuses_what_it_would_not_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["plan", "--scaling", "foo=bar", "--gist_weight", "1"]) == 2
    assert "not of foo=bar, objectives.gist=1" in capsys.readouterr().err
    assert cli.main(["plan", "--scaling", "--gpus-per-node", "3"]) == 2
    assert "--gpus-per-node: 3 makes no whole nodes" in capsys.readouterr().err
    assert cli.main(["plan", "--scaling", "--gpus-per-node", "16"]) == 0


def test_an_unknown_model_without_a_hub_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout is planned all the same; that the rest fits is not claimed."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    unknown = ["--recipe", "squad_8b", "decoders.llama.model=nobody/nothing"]
    assert cli.main(["plan", *unknown]) == 1
    said = capsys.readouterr()
    assert "ranks 0-3" in said.out and "HF_HUB_OFFLINE" in said.out
    assert said.err == ""


def test_a_plan_follows_a_local_folder(pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = plan(
        *("--recipe", "smoke", "--gpus-per-node", "2", "--gpu-memory", "4"),
        *(f"decoders.{name}.model={pair / name}" for name in ("llama", "qwen")),
        f"encoder.model={pair / 'llama'}",
        capsys=capsys,
    )
    assert found["lengths"]["context"] == 1024


def test_efficiency_falls_with_slower_links() -> None:
    """And is one where nothing is sent and both decoders take the same."""
    _, found = scaling.pairs(Device(), gpus_per_node=8)
    _, slow = scaling.pairs(Device(link_bandwidth=5e9), gpus_per_node=8)
    for pair, slower in zip(found, slow, strict=True):
        for point, other in zip(pair.points, slower.points, strict=True):
            assert 0 < point.worst <= point.best <= 1
            if point.gpus > 8:
                assert other.worst < point.worst
    config = config_file.load("squad_8b", ["decoders.qwen=null"])
    one = topology.plan(config.decoders, placement="separate", world_size=1)
    step = batch.StepShape(batch_size=12, ratio=4)
    at = batch.Lengths(context=160, answer=33)
    point = scaling.measure(config, scaling.known(config), one, step, at, Device(), per_node=8)
    assert point.worst == point.best == 1


def test_sizes_over_the_world_do_not_grow_with_it() -> None:
    """What a rank sends of the encoder's weights comes near the whole of them, and stays there."""
    config = config_file.load("squad_8b", [])
    models = scaling.known(config)
    sent = []
    for world_size in (8, 64):
        topo = topology.plan(config.decoders, placement="separate", world_size=world_size)
        step = batch.StepShape(batch_size=6 * world_size, ratio=4)
        at = batch.Lengths(context=160, answer=33)
        found = collectives(config, models, topo, step, at)
        sent.append(sum(c.sent for c in found if c.what.startswith("encoder weights")))
    assert sent[0] * 8 / 7 == pytest.approx(sent[1] * 64 / 63)
    # In bf16, forward and backward, but for what is gathered once.
    assert 2 * 2 * 2.8e9 < sent[1] < 2 * 2 * 3.3e9


def test_zero_shards_what_it_says() -> None:
    """Stage 1 and 2 keep whole weights, stage 3 and FSDP2 a share."""
    folder = REPOSITORY / "ds_configs"
    rests = {}
    for name in ("zero1", "zero2", "zero3", "zero2_offload"):
        config = config_file.load(
            "squad_8b",
            [
                "encoder.lora.rank=0",
                "sharding.backend=deepspeed",
                f"sharding.ds_config={folder / name}.json",
            ],
        )
        topo = topology.plan(config.decoders, placement="separate", world_size=8)
        at = batch.Lengths(context=512, answer=33)
        rests[name] = predict(config, scaling.known(config), topo, at)[0]
    assert rests["zero3"].at_rest < rests["zero2"].at_rest
    assert rests["zero2_offload"].at_rest < rests["zero2"].at_rest
    assert rests["zero2_offload"].host > 12 * 3.2e9 / 8
    assert rests["zero2"].host == 0
