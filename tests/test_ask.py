"""``latentwire ask`` and its reader, on the wire of a short run."""

import copy
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import small_overrides

import latentwire
from latentwire import cli, config_file
from latentwire.ask import main
from latentwire.checkpoint_tool import main as checkpoint
from latentwire.checkpointing.manifest import read_manifest
from latentwire.config import ConfigError
from latentwire.decoders import loading
from latentwire.evaluation import asking
from latentwire.evaluation.asking import WireReader
from latentwire.testing import run_distributed
from latentwire.training import run
from latentwire.training.preflight import preflight
from latentwire.wire.exported import ExportedWire, load_wire


def train_on_rank(rank: int, world_size: int, overrides: list[str]) -> str:
    return run.train(preflight(config_file.load("smoke", overrides), world_size=world_size)).state


@pytest.fixture(scope="module")
def trained(embedded_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, whose wire has every part that a decoder may read."""
    root = tmp_path_factory.mktemp("asked")
    overrides = small_overrides(
        embedded_pair,
        root,
        *("train.stage_a.steps=2", "train.stage_b.steps=0"),
        *("eval.samples=12", "eval.ratios=[10]"),
        *("wire.latent_private_len=1", "decoders.llama.lora.rank=2", "gist.use_gist_head=false"),
    )
    assert run_distributed(train_on_rank, 1, overrides) == ["finished"]
    return root / "runs" / "test"


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "wire"
    assert checkpoint(["export", str(trained), str(out)]) == 0
    return out


VALIDATED = {"best": {"stage": "A", "step": 1, "score": 0.5}, "stage": "A", "num_stale": 1}
"""What a checkpoint knows of validations: the first step was the best."""


def change(step: Path, name: str, changed: Callable[[Any], Any]) -> None:
    """Rewrites a file of a published step, in JSON, as the manifest then says."""
    path, manifest = step / name, read_manifest(step)
    path.write_text(json.dumps(changed(yaml.safe_load(path.read_text()))))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = replace(manifest.files[name], bytes=path.stat().st_size, sha256=digest)
    told = replace(manifest, files={**manifest.files, name: entry})
    (step / "manifest.json").write_text(json.dumps(told.to_tree()))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_answers_as_stage_c_did(trained: Path, exported: Path) -> None:
    examples = lines(trained / "examples.jsonl")
    questions = [each["question"] for each in examples]
    contexts = [each["context"] for each in examples]
    for name in ("llama", "qwen"):
        reader = latentwire.load_reader(exported, name)
        found = {
            "text": reader.answer_from_text(questions, contexts),
            "latent": reader.answer(questions, contexts),
            "latent@10": reader.answer(questions, contexts, ratio=10),
        }
        for arm, answers in found.items():
            said = [
                each["prediction"]
                for each in lines(trained / "predictions.jsonl")
                if each["decoder"] == name and each["arm"] == arm
            ]
            assert answers == said, (name, arm)
        assert found["text"] != found["latent"], "of an untrained wire"
        assert reader.answer([], []) == []


def test_a_text_is_shorter_as_a_wire(exported: Path) -> None:
    reader = latentwire.load_reader(exported, "qwen")
    text = "Mia lives in Oslo. Mia works as a baker. Mia has learned the drum."
    five, ten = reader.sizes(text), reader.sizes(text, ratio=10)
    assert five.num_tokens == ten.num_tokens > five.num_positions > ten.num_positions
    assert not (five.is_cut or five.num_tokens_cut or five.is_wire_too_long)
    long = reader.sizes(text * 300)
    assert long.is_cut and 900 < long.num_tokens - long.num_tokens_cut < 1024
    assert reader.sizes(text * 300, ratio=1).is_wire_too_long


def test_the_step_that_is_asked_is_the_one_that_is_evaluated(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best by validation, or the last where ``eval.checkpoint`` says so; of exports too."""
    root = tmp_path / "run"
    shutil.copytree((trained / "ckpt").resolve(), root)
    last = root / "stageA" / "step-00000002"
    first = root / "stageA" / "step-00000001"
    shutil.copytree(last, first)
    change(last, "trainer.json", lambda tree: {**tree, "validation": VALIDATED})
    change(first, "trainer.json", lambda tree: {**tree, "step": 1})
    asked = [str(root), "--text", "a", "--question", "b?", "--decoder", "qwen"]
    assert main(asked) == 0
    assert capsys.readouterr().out.startswith("wire of stage A, step 1\n")
    assert checkpoint(["export", str(root), str(tmp_path / "best")]) == 0
    assert latentwire.load_wire(tmp_path / "best").description["place"]["step"] == 1
    change(
        last, "config.yaml", lambda tree: {**tree, "eval": {**tree["eval"], "checkpoint": "last"}}
    )
    capsys.readouterr()
    assert main(asked) == 0
    assert capsys.readouterr().out.startswith("wire of stage A, step 2\n")
    assert main([str(first), *asked[1:]]) == 0
    assert capsys.readouterr().out.startswith("wire of stage A, step 1\n")


def test_what_it_cannot_answer_is_refused(exported: Path, tmp_path: Path) -> None:
    reader = latentwire.load_reader(exported, "llama")
    with pytest.raises(ValueError, match="2 questions, but 1 contexts"):
        reader.answer(["a?", "b?"], ["c"])
    with pytest.raises(ValueError, match="1 encoder token or more"):
        reader.answer(["a?"], ["b"], ratio=0)
    with pytest.raises(ValueError, match="questions: one string was given for a list"):
        reader.answer("a?", ["b", "c"])
    with pytest.raises(ValueError, match="max_new_tokens 0: an answer has 1 token or more"):
        reader.answer(["a?"], ["b"], max_new_tokens=0)
    with pytest.raises(ConfigError, match=r"no folder '/no/such' here; give the model's"):
        latentwire.load_reader(exported, "llama", model="/no/such")
    with pytest.raises(ValueError, match="no decoder 'mistral'; there are llama, qwen"):
        latentwire.load_reader(exported, "mistral")


def test_another_model_is_refused(
    exported: Path, embedded_pair: Path, pair: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(embedded_pair / "llama", moved)
    latentwire.load_reader(exported, "llama", model=str(moved))
    with pytest.raises(ConfigError, match="is not the decoder that the wire was trained with"):
        latentwire.load_reader(exported, "llama", model=str(pair / "llama"))


def test_what_a_machine_trained_with_it_need_not_read_with(
    trained: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = lines(trained / "examples.jsonl")[0]
    asked = [example["question"]], [example["context"]]
    wire = load_wire(exported)
    reader = WireReader(wire, "llama")

    def set_up_as(**settings: Any) -> ExportedWire:
        decoders = {
            **wire.config.decoders,
            "llama": replace(wire.config.decoders["llama"], **settings),
        }
        other = copy.copy(wire)
        other.config = replace(wire.config, decoders=decoders)
        return other

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(loading, "compile_layers", refuse)
    told = WireReader(set_up_as(compile=True, gradient_checkpointing=True), "llama")
    assert told.answer(*asked) == reader.answer(*asked)

    def gone(*args: Any, **kwargs: Any) -> None:
        raise ImportError("bitsandbytes is not there")

    monkeypatch.setattr(asking, "load_decoder", gone)
    with pytest.raises(ConfigError, match=r"decoders\.llama\.model: .* bitsandbytes is not there"):
        WireReader(set_up_as(quantization="nf4"), "llama")


def test_a_run_an_export_and_a_step_say_the_same(
    trained: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = next((trained / "ckpt").resolve().glob("stageA/step-*"))
    said = []
    for named in (trained, exported, step):
        assert main([str(named), "--document", "1"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2]
    assert said[0].startswith("wire of stage A, step 2\n")
    right = [line.split()[-1] for line in said[0].splitlines() if line.startswith("  right")]
    from_text = [line.split()[-1] for line in said[0].splitlines() if "llama text" in line]
    assert len(right) > 1 and sum(map(str.__eq__, right, from_text)) >= len(right) - 1


def test_questions_are_read_from_the_input(
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "text.txt"
    file.write_text("Xenia lives in Bresk. Emil reads books in Hindi.\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("In which place is the home of Xenia?\n\nmore\n"))
    only = ["--decoder", "qwen", "--ratio", "10"]
    assert main([str(exported), "--file", str(file), *only]) == 0
    out = capsys.readouterr().out
    assert "  qwen text  Bresk\n" in out and "  qwen wire  " in out
    assert "llama" not in out and "more" not in out


def test_nothing_that_a_decoder_writes_is_obeyed_by_the_terminal(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def written(self: WireReader, questions: Sequence[str], *_: Any, **__: Any) -> list[str]:
        return ["Bresk\n\x1b]0;taken\x07\x9b2J\x7f" for _ in questions]

    monkeypatch.setattr(WireReader, "answer", written)
    monkeypatch.setattr(WireReader, "answer_from_text", written)
    assert main([str(exported), "--text", "a", "--question", "b", "--decoder", "qwen"]) == 0
    out = capsys.readouterr().out
    assert out.count("Bresk \ufffd]0;taken\ufffd\ufffd2J\ufffd\n") == 2
    assert not set(out) & set("\x1b\x07\x9b\x7f")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--text", " "], "the text is empty"),
        (["--text", "a", "--ratio", "0"], "1 encoder token or more"),
        (
            ["--text", "a", "--decoder", "mistral"],
            "--decoder mistral: the wire is read by llama, qwen",
        ),
        (["--document", "999999"], "the test split has 0 to"),
        (["--file", "nowhere.txt"], "--file nowhere.txt cannot be read"),
        (["--text", "a", "--device", "nothing"], "--device nothing: "),
        (["--text", "a", "--device", "meta"], "--device meta: has no numbers"),
        (["--text", "a\udce9"], "--text: holds bytes that are no UTF-8"),
        (["--text", "a", "--question", "\udce9"], "--question: holds bytes that are no UTF-8"),
        (["--text", "a", "--model", "qwen"], "--model qwen: give DECODER=MODEL"),
        (["--text", "a", "--model", "mistral=b"], "--model mistral: the wire is read by"),
        ([], "required"),
    ],
)
def test_bad_input_ends_in_a_message(
    options: list[str], says: str, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ask", str(exported), *options]) == 2
    assert says in capsys.readouterr().err


def test_a_damaged_step_is_neither_asked_nor_exported(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run"
    shutil.copytree((trained / "ckpt").resolve(), root)
    path = next(root.glob("stageA/step-*/encoder/*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert main([str(root), "--text", "a"]) == 2
    assert str(path) in capsys.readouterr().err
    assert checkpoint(["export", str(root), str(tmp_path / "out")]) == 2
    assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_wire_ends_in_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--text", "a"]) == 2
    assert "holds no checkpoints" in capsys.readouterr().err


def test_models_that_are_gone_end_in_a_message(
    trained: Path,
    exported: Path,
    embedded_pair: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tree = json.loads((exported / "config.json").read_text())
    for decoders in (tree["config"]["decoders"], tree["decoders"]):
        decoders["qwen"]["model"] = "/nowhere/qwen"
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    (copy / "config.json").write_text(json.dumps(tree))
    assert main([str(copy), "--text", "a"]) == 2
    said = capsys.readouterr().err
    assert "decoders.qwen.model: '/nowhere/qwen' is no folder" in said
    assert "--model DECODER=MODEL says where a model is now" in said
    asked = ["--text", "a", "--question", "b?", "--decoder", "qwen"]
    assert main([str(copy), *asked, "--model", f"qwen={embedded_pair / 'qwen'}"]) == 0
    assert "  qwen wire  " in capsys.readouterr().out
    with pytest.raises(ConfigError, match="there is no folder '/nowhere/qwen' here"):
        latentwire.load_reader(copy, "qwen")

    moved = tmp_path / "run"
    shutil.copytree((trained / "ckpt").resolve(), moved)
    (step,) = moved.glob("stageA/step-*")
    gone = {"model": "/nowhere/llama"}
    change(step, "config.yaml", lambda tree: {**tree, "encoder": {**tree["encoder"], **gone}})
    assert main([str(moved), "--text", "a"]) == 2
    said = capsys.readouterr().err
    assert "encoder.model: '/nowhere/llama'" in said and "is no folder any more" in said
