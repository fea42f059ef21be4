"""``latentwire bench``: its figures, the loop it is compared with, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench_cases import LENGTHS, small_bench
from conftest import REPOSITORY
from torch.utils.flop_counter import FlopCounterMode

from latentwire import bench, config_file
from latentwire.benching import machine, made_up, operations, setting
from latentwire.benching.plain_loop import PlainLoop
from latentwire.benching.setting import Texts, made_up_overrides
from latentwire.config import ConfigError
from latentwire.data.sources import open_source
from latentwire.testing import run_distributed
from latentwire.training.stages import Stage


def test_against_the_plain_loop_objectives_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures" / "bench.json"
    more = ["--against=naive", f"--json={file}", "objectives.kd_temperature=2"]
    assert bench.main(small_bench(tmp_path, more)) == 0
    tree = json.loads(file.read_text())
    naive = tree["naive"]
    assert set(naive["differences"]) == {"tf", "first", "kce", "kd"}
    assert max(naive["differences"].values()) < 1e-4, naive["differences"]
    assert len(naive["ratios"]) == len(tree["step_seconds_blocks"]) == 2
    # Four questions share a context's encoding.
    assert 2 < naive["predicted_ratio"] < 4 * 2
    phases = tree["phases"]
    assert min(phases.values()) >= 0
    for name in ("encoder forward", "decoders forward", "decoders backward", "encoder backward"):
        assert phases[name] > 0, phases
    table = capsys.readouterr().out
    for word in ("examples a second", "share of the peak", "against the plain loop", "optimizer"):
        assert word in table, table
    assert not list(tmp_path.glob("run-*")), "what a run leaves is not kept"


def test_a_plain_loop_that_learns_otherwise_is_seen(tmp_path: Path) -> None:
    """The comparison can fail: with another temperature of the teacher, kd alone differs."""
    found = run_distributed(_differences_at_another_temperature, 1, str(tmp_path))
    differences = found[0]
    assert differences["kd"] > 1e-2, differences
    assert max(differences[name] for name in ("tf", "first", "kce")) < 1e-4, differences


def _differences_at_another_temperature(rank: int, world: int, folder: str) -> dict[str, float]:
    import dataclasses

    from latentwire.benching.plain_loop import largest_difference
    from latentwire.training.trainer import Trainer

    job, stage = _job_and_stage(folder)
    plain = PlainLoop(job)
    plan = stage.plan(1)
    own = Trainer(job, record=lambda record: None, save=lambda stage, step: None).step(plan)
    objectives = dataclasses.replace(job.config.objectives, kd_temperature=3.0)
    job.config = dataclasses.replace(job.config, objectives=objectives)
    return largest_difference(own.reduced(), plain.step(plan))


def test_operations_are_those_that_torch_counts(tmp_path: Path) -> None:
    """The plain loop pads nothing here, since all texts are equally long; the wire's own small
    parts, which are not counted, are a few hundredths."""
    counted, executed = run_distributed(_counted_and_executed, 1, str(tmp_path))[0]
    assert counted == pytest.approx(executed, rel=0.05)


def _counted_and_executed(rank: int, world: int, folder: str) -> list[float]:
    job, stage = _job_and_stage(folder)
    plain, plan = PlainLoop(job), stage.plan(1)
    with FlopCounterMode(display=False) as counter:
        plain.step(plan)
    total = operations.of_plain_step(job, plan, teacher=True).total
    return [total, float(counter.get_total_flops())]


def _job_and_stage(folder: str) -> tuple:  # type: ignore[type-arg]
    from jobs import make_job

    options, overrides = bench._parse(small_bench(Path(folder)))
    config = config_file.load("bench", overrides)
    texts = Texts(context_tokens=20, question_tokens=5, answer_tokens=3, contexts=30)
    config = config_file.load(
        "bench", [*overrides, *made_up_overrides(config, texts, options["folder"])]
    )
    job = make_job(config, 1)
    path = config.data.path
    source = open_source(source="jsonl", path=path, setting=None, split="train", seed=0)
    return job, Stage(config, "B", source)


def test_another_users_models_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setting, "default_folder", lambda: tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="is another user's; name another"):
        made_up_overrides(config_file.load("bench"), Texts(), tmp_path)


@pytest.mark.slow
def test_two_ranks_with_a_decoder_each(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("-m", "latentwire.bench", f"--json={file}"),
    ]
    subprocess.run([*command, *small_bench(tmp_path)], cwd=REPOSITORY, check=True, timeout=200)
    tree = json.loads(file.read_text())
    assert tree["world_size"] == 2 and tree["placement"] == "separate"
    assert set(tree["tokens_per_second"]) == {"llama", "qwen"}


def test_it_needs_no_deepspeed_datasets_or_bitsandbytes(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('deepspeed', 'datasets', 'bitsandbytes'): sys.modules[name] = None\n"
        "from latentwire.bench import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *small_bench(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "examples a second" in done.stdout


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--steps=0"], "--steps: 0 should be above 0"),
        (["--recipe=smoke", "--questions=4"], "add --random"),
        (["--against=naive", "adapter.use_deep_prefix=true"], "set to false"),
        (["--against=naive", "objectives.ae=0.2"], "objectives: ae"),
        (["decoders.qwen.model=nobody/knows"], "the shape of 'nobody/knows'"),
        (["encoder.kind=byte"], "no model whose operations can be counted"),
        (["--against=slow"], "--against"),
        (["--json=/proc/nowhere/bench.json"], "--json: /proc/nowhere/bench.json cannot be written"),
    ],
)
def test_bad_input_is_refused_by_name(
    tmp_path: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [text for text in LENGTHS if "questions" not in text]
    if "--recipe=smoke" in more:
        arguments = []
    assert bench.main([f"--folder={tmp_path}", *arguments, *more]) == 2
    assert words in capsys.readouterr().err


def test_made_up_texts_are_as_long_as_they_should(tmp_path: Path) -> None:
    tokenizer = made_up.tokenizer(96)
    made_up.write_texts(
        tmp_path / "texts.jsonl",
        contexts=3,
        context_tokens=17,
        questions=2,
        question_tokens=4,
        answer_tokens=3,
        words=made_up.num_words(96),
        seed=0,
    )
    rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    for row in rows:
        ids = [tokenizer(text)["input_ids"] for text in (row["context"], row["question"])]
        assert [len(own) for own in ids] == [17, 4]
        assert tokenizer.unk_token_id not in ids[0]
        assert tokenizer.decode(ids[0]) == row["context"]


def test_the_machine_has_a_peak() -> None:
    peak = machine.matmul_peak(torch.device("cpu"), torch.float32, size=128)
    assert 1e8 < peak < 1e15
