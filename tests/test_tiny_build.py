"""``latentwire tiny build``: sizes, devices, what is saved, what is printed."""

import re
from pathlib import Path

import pytest
import torch
from conftest import narrow
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from latentwire import cli
from latentwire.data import tiny

QUICK = ["--steps", "1", "--documents", "2"]
NUMBER = r"[01]\.\d{3}"


def narrow_specs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every packaged specification one of two small layers."""
    load = tiny.load_specs
    monkeypatch.setattr(
        tiny, "load_specs", lambda path: {name: narrow(spec) for name, spec in load(path).items()}
    )


@pytest.mark.parametrize("size", tiny.sizes())
def test_every_size_builds_and_prints_what_each_model_reads(
    size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow_specs(monkeypatch)
    arguments = ["tiny", "build", "--size", size, "--device", "cpu", "--out", str(tmp_path)]
    assert cli.main([*arguments, *QUICK]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " profiles: " in line]
    plain = rf"plain profiles: em {NUMBER} \(plain {NUMBER}(, shared {NUMBER})?\)"
    kinds = rf"direct {NUMBER}, paraphrased {NUMBER}, two_hop {NUMBER}"
    hard = rf"hard profiles: em {NUMBER} \({kinds}\)"
    patterns = [f"{name}, {rest}" for name in ("llama", "qwen") for rest in (plain, hard)]
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), line
    for name in ("llama", "qwen"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert model.config.max_position_embeddings == (2048 if size == "small" else 1024)


def test_printed_scores_are_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of both kinds of profiles, with the seed and as many documents as the command names."""
    asked = []

    def scores(model: object, tokenizer: object, **options: object) -> dict[str, float]:
        asked.append(options)
        return {"em": 0.5, "em_b": 1.0, "em_a": 0.25}

    narrow_specs(monkeypatch)
    monkeypatch.setattr(tiny, "reading_accuracy", scores)
    arguments = ["tiny", "build", "--only", "qwen", "--seed", "3", "--out", str(tmp_path)]
    assert cli.main([*arguments, *QUICK]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "qwen, plain profiles: em 0.500 (a 0.250, b 1.000)",
        "qwen, hard profiles: em 0.500 (a 0.250, b 1.000)",
    ]
    assert asked == [{"seed": 3, "num_documents": 2, "hard": hard} for hard in (False, True)]
    assert [path.name for path in tmp_path.iterdir()] == ["qwen"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--size", "huge"], ["--size", "'huge'", "small", "tiny"]),
        (["--size", "small", "--only", "x"], ["--only: 'x'", "'small'", "llama, qwen"]),
        (["--device", "tpu"], ["--device: 'tpu' is not here; there is cpu"]),
        (["--device", "cuda:99"], ["--device: 'cuda:99' is not here; there is cpu"]),
        (["--steps", "0"], ["--steps: '0' is no whole number of at least 1"]),
        (["--documents", "few"], ["--documents: 'few' is no whole number of at least 1"]),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(
    arguments: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["tiny", "build", "--out", str(tmp_path), *arguments])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert not [part for part in parts if part not in message], message
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_takes_nothing_is_refused_before_the_pretraining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(tiny, "pretrain", lambda *_, **__: pytest.fail("pretrained"))
    assert cli.main(["tiny", "build", "--out", str(tmp_path / "file"), *QUICK]) == 2
    assert "--out: " in (said := capsys.readouterr().err) and "cannot be written" in said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("error", [OSError(28, "No space left"), SafetensorError("No space left")])
def test_a_model_that_cannot_be_saved_ends_in_a_message(
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def save(*_: object) -> None:
        raise error

    narrow_specs(monkeypatch)
    monkeypatch.setattr(tiny, "save", save)
    arguments = ["tiny", "build", "--only", "llama", "--device", "cpu", "--out", str(tmp_path)]
    assert cli.main([*arguments, *QUICK]) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path / 'llama'} is not saved: " in said and "No space left" in said


@pytest.mark.parametrize("gpus", [0, 2])
def test_the_default_device_is_the_gpu_where_there_is_one(
    gpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ReachedError(Exception):
        pass

    def pretrain(spec: tiny.TinySpec, *, device: torch.device, **_: object) -> None:
        devices.append(str(device))
        raise ReachedError

    devices: list[str] = []
    monkeypatch.setattr(tiny, "pretrain", pretrain)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for more in ([], ["--device", "cuda:1" if gpus else "cpu"]):
        with pytest.raises(ReachedError):
            cli.main(["tiny", "build", "--out", str(tmp_path), *more])
    assert devices == (["cuda", "cuda:1"] if gpus else ["cpu", "cpu"])


@pytest.mark.slow
def test_the_small_pair_builds_at_its_full_size(tmp_path: Path) -> None:
    arguments = ["tiny", "build", "--size", "small", "--only", "qwen", "--device", "cpu"]
    quick = ["--steps", "1", "--documents", "1", "--out", str(tmp_path)]
    assert cli.main([*arguments, *quick]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "qwen")
    assert 20e6 <= model.num_parameters() <= 40e6
