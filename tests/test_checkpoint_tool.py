"""``latentwire checkpoint``, and the exported wire, on a run of four steps by two ranks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from conftest import small_overrides
from launching import python

import latentwire
from latentwire import config_file, train
from latentwire.checkpoint_tool import main
from latentwire.checkpointing import commit
from latentwire.config import ConfigError
from latentwire.data.loader import global_batch
from latentwire.distributed.assembly import assemble
from latentwire.distributed.groups import ProcessGroups
from latentwire.evaluation.runner import held_out
from latentwire.testing import run_distributed
from latentwire.training import run
from latentwire.training.preflight import preflight
from latentwire.training.stage_c import open_source_for
from latentwire.training.status import read_status, write_status
from latentwire.wire.exported import ExportedWire


@pytest.fixture(scope="module")
def trained(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished run's folder, and its overrides."""
    root = tmp_path_factory.mktemp("trained")
    overrides = small_overrides(
        pair,
        root,
        "train.stage_a.steps=4",
        "train.stage_b.steps=0",
        "checkpoint.interval=2",
        "gist.use_gist_head=true",
        "wire.refiner.layers=1",
    )
    run_distributed(train_on_rank, 2, overrides)
    return root / "runs" / "test", overrides


def train_on_rank(rank: int, world_size: int, overrides: list[str]) -> str:
    config = config_file.load("smoke", overrides)
    return run.train(preflight(config, world_size=world_size)).state


def checkpoints(folder: Path) -> Path:
    return (folder / "ckpt").resolve()


def start_wrongly_on_rank(
    rank: int, world_size: int, overrides: list[str], where: str
) -> list[str]:
    plan = preflight(config_file.load("smoke", overrides), world_size=world_size)
    try:
        run.train(plan, resume_from=where)
    except ConfigError as error:
        return error.problems
    return []


def test_a_start_that_is_refused_leaves_the_run_what_it_was(
    trained: tuple[Path, list[str]],
) -> None:
    folder, overrides = trained
    before = (folder / "config.yaml").read_text()
    longer = [*overrides, "train.stage_a.steps=6"]
    said = run_distributed(start_wrongly_on_rank, 2, longer, "stageA/step-00000099")
    assert all("is no checkpoint of this run" in found[0] for found in said)
    assert (folder / "config.yaml").read_text() == before


def test_a_wish_that_is_refused_leaves_a_finished_run_finished(
    trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, overrides = trained
    write_status(folder, state="finished", code=0)
    before = json.loads((folder / "status.json").read_text())
    wish = ["--resume-from", "stageA/step-00000099"]
    # One process may go on with a run of two.
    assert train.main(["--recipe", "smoke", *wish, *overrides]) == 2
    assert "'stageA/step-00000099' is no checkpoint of this run" in capsys.readouterr().err
    now = json.loads((folder / "status.json").read_text())
    assert "is no checkpoint of this run" in now.pop("refused")["reason"]
    assert now == before


def test_a_damaged_wish_leaves_a_finished_run_finished(
    trained: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished, overrides = trained
    folder = tmp_path / "runs" / finished.name
    shutil.copytree(finished, folder, symlinks=True)
    shutil.copytree(checkpoints(finished), tmp_path / "checkpoints" / finished.name)
    step = tmp_path / "checkpoints" / finished.name / "stageA" / "step-00000002"
    damage(next((step / "encoder").glob("*.safetensors")))
    write_status(folder, state="finished", code=0)
    was = (folder / "config.yaml").read_text()
    root = str(finished.parent.parent)
    (folder / "config.yaml").write_text(was.replace(root, str(tmp_path)))
    places = [f"run.root={tmp_path / 'runs'}", f"checkpoint.root={tmp_path / 'checkpoints'}"]
    wish = ["--resume-from", "stageA/step-00000002"]
    assert train.main(["--recipe", "smoke", *wish, *overrides, *places]) == 2
    said = capsys.readouterr().err
    assert "step-00000002" in said and "--resume-from: choose another step" in said
    assert read_status(folder)["state"] == "finished"
    # Without its figures it is not what it was.
    (folder / "metrics.json").unlink()
    assert train.main(["--recipe", "smoke", *wish, *overrides, *places]) == 2
    assert read_status(folder)["state"] == "failed"


def damage(path: Path) -> None:
    """The last byte of a file becomes another."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_damaged_step_is_not_replaced_by_another(
    trained: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = trained
    copy = tmp_path / "copy"
    shutil.copytree(checkpoints(folder), copy)
    earlier = str(copy / "stageA" / "step-00000002")
    assert main(["diff", earlier, str(copy)]) == 1
    damage(copy / "stageA" / "step-00000004" / "config.yaml")
    capsys.readouterr()
    assert main(["diff", earlier, str(copy)]) == 2
    assert "config.yaml is damaged" in capsys.readouterr().err
    (copy / "stageA" / "step-00000004" / "manifest.json").write_text("{")
    for command in (["export", str(copy), str(tmp_path / "out")], ["diff", earlier, str(copy)]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "step-00000004/manifest.json is damaged" in said
        assert "the latest step is damaged; name another step's folder" in said
    assert not (tmp_path / "out").exists()
    assert main(["export", earlier, str(tmp_path / "out")]) == 0


def test_list_and_verify(
    trained: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = trained
    assert main(["list", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("stageA/step-00000002") and lines[1].endswith("valid")
    assert lines[2].startswith("stageA/step-00000004") and lines[2].endswith("latest")
    assert main(["verify", str(folder)]) == 0
    assert "2 steps, 0 damaged" in capsys.readouterr().out

    copy = tmp_path / "copy"
    shutil.copytree(checkpoints(folder), copy)
    path = next((copy / "stageA" / "step-00000002" / "encoder").glob("*.safetensors"))
    damage(path)
    assert main(["verify", str(copy)]) == 1
    out = capsys.readouterr().out
    assert "stageA/step-00000002: DAMAGED" in out and str(path) in out and "(tensors " in out
    assert main(["verify", str(copy / "stageA" / "step-00000004")]) == 0
    (copy / "stageA" / "step-00000004" / "trainer.json").unlink()
    capsys.readouterr()
    assert main(["list", str(copy)]) == 0
    assert "trainer.json is missing" in capsys.readouterr().out


def test_diff(trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    root = checkpoints(trained[0])
    one, two = (str(root / "stageA" / f"step-0000000{number}") for number in (2, 4))
    assert main(["diff", one, one]) == 0
    assert "no difference" in capsys.readouterr().out
    assert main(["diff", one, two]) == 1
    out = capsys.readouterr().out
    names = ("encoder", "refiner", "adapter_qwen", "deep_prefix_llama", "gist_llama")
    for name in names:
        assert f"{name} weight: " in out and f"{name} exp_avg: " in out, name
    assert "config " not in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["list", "nowhere"], "holds no checkpoints"),
        (["verify", "nowhere"], "holds no checkpoints"),
        (["diff", "nowhere", "nowhere"], "holds no checkpoints"),
        (["export", "nowhere", "out"], "holds no checkpoints"),
        (["explode"], "invalid choice"),
        ([], "required"),
    ],
)
def test_bad_input_ends_in_a_message(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


def latents_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, torch.Tensor]:
    """What the run's own job reads for some texts, after loading its newest step."""
    config = config_file.load("smoke", overrides)
    plan = preflight(config, world_size=world_size)
    groups = ProcessGroups(plan.topology, device=torch.device("cpu"), timeout=60)
    job = assemble(config, groups)
    jobs.load_job(job, commit.newest(plan.checkpoint_folder), with_optimizer=False)
    job.wire.eval()
    examples = held_out(open_source_for(plan, "test"), seed=0, samples=3)
    batch = global_batch(examples, job.any_prompts)
    with torch.no_grad():
        latents = job.latents(batch)
        counts = torch.tensor([job.tokenizer.num_latents(text) for text in batch.texts])
        read = {f"read {name}": job.wire.inject(name, latents, counts) for name in job.decoders}
    return {"latents": latents} | {name: found.vectors for name, found in read.items()}


def exported(trained: tuple[Path, list[str]], out: Path) -> Path:
    assert main(["export", str(trained[0]), str(out)]) == 0
    return out


def test_an_export_reads_as_the_run_did(
    trained: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, overrides = trained
    (tmp_path / "wire.tmp").mkdir()
    (tmp_path / "wire.tmp" / "notes.txt").write_text("mine")
    out = exported(trained, tmp_path / "wire")
    assert (tmp_path / "wire.tmp" / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wire", "wire.tmp"]
    assert sorted(path.name for path in out.iterdir()) == [
        *("README.md", "config.json", "encoder", "model.safetensors")
    ]
    assert not list((out / "encoder").glob("*.safetensors")), "no frozen model's weights"
    assert main(["export", str(folder), str(out)]) == 2
    assert "exists" in capsys.readouterr().err

    (expected,) = run_distributed(latents_on_rank, 1, overrides)
    wire = latentwire.load_wire(out)
    config = config_file.load("smoke", overrides)
    plan = preflight(config, world_size=1)
    examples = held_out(open_source_for(plan, "test"), seed=0, samples=3)
    texts = list(dict.fromkeys(example.context for example in examples))
    found = wire.encode(texts)
    assert torch.equal(found.vectors, expected["latents"][: len(texts)])
    for name in wire.decoders:
        assert torch.equal(wire.inject(name, found).vectors, expected[f"read {name}"])
    shorter = wire.encode(texts, ratio=20)
    assert (shorter.counts < found.counts).all()
    with pytest.raises(ValueError, match="no decoder 'mistral'; there are llama, qwen"):
        wire.inject("mistral", found)

    # As the hub would have it: saved again, and opened by its class.
    again = tmp_path / "again"
    wire.save_pretrained(again)
    reopened = ExportedWire.from_pretrained(str(again))
    assert torch.equal(reopened.encode(texts).vectors, found.vectors)


def test_an_export_is_pushed_as_it_is(
    trained: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``push_to_hub`` uploads the folder that ``save_pretrained`` writes."""
    from huggingface_hub import HfApi

    sent: dict[str, list[str]] = {}

    class Repo:
        repo_id = "me/wire"

    def upload(self: HfApi, *, folder_path: Path, **more: object) -> str:
        sent["files"] = sorted(
            str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*")
        )
        return "done"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, *a, **k: Repo())
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    latentwire.load_wire(exported(trained, tmp_path / "wire")).push_to_hub("me/wire")
    assert {"config.json", "model.safetensors", "README.md", "encoder/config.json"} <= set(
        sent["files"]
    )


def test_a_wire_that_was_frozen_is_saved_whole(
    trained: tuple[Path, list[str]], tmp_path: Path
) -> None:
    wire = latentwire.load_wire(exported(trained, tmp_path / "wire"))
    wire.requires_grad_(False)
    wire.save_pretrained(tmp_path / "again")
    again = latentwire.load_wire(tmp_path / "again")
    assert torch.equal(again.encode(["Ada."]).vectors, wire.encode(["Ada."]).vectors)


def test_an_export_is_for_all_to_read_and_says_nothing_of_the_machine(
    trained: tuple[Path, list[str]], tmp_path: Path
) -> None:
    out = exported(trained, tmp_path / "wire")
    modes = {path.stat().st_mode & 0o777 for path in out.iterdir() if path.is_file()}
    assert len(modes) == 1
    config = json.loads((out / "config.json").read_text())["config"]
    assert (config["run"]["root"], config["checkpoint"]["root"]) == ("runs", "checkpoints")


def test_a_received_export_hands_on_no_file_of_its_readers(
    trained: tuple[Path, list[str]], tmp_path: Path
) -> None:
    out = exported(trained, tmp_path / "wire")
    (tmp_path / "secret").write_text("of the reader")
    for name in ("vocab.txt", "notes.txt"):
        (out / "encoder" / name).symlink_to(tmp_path / "secret")
    (out / "encoder" / "folder").mkdir()
    latentwire.load_wire(out).save_pretrained(tmp_path / "again")
    found = {path.name for path in (tmp_path / "again" / "encoder").iterdir()}
    assert "config.json" in found and not found & {"vocab.txt", "notes.txt", "folder"}


def test_texts_that_are_none_are_refused(trained: tuple[Path, list[str]], tmp_path: Path) -> None:
    wire = latentwire.load_wire(exported(trained, tmp_path / "wire"))
    for texts, said in [
        ("Ada.", "one string was given for a list"),
        ([None], "number 0 is no text"),
        (["a", "\ud800"], "number 1 is no valid Unicode"),
    ]:
        with pytest.raises(ValueError, match=said):
            wire.encode(texts)  # type: ignore[arg-type]
    for ratio in (2.5, True, "3"):
        with pytest.raises(ValueError, match="no whole number"):
            wire.encode(["Ada."], ratio=ratio)  # type: ignore[arg-type]
    assert wire.encode([]).vectors.shape == (0, 0, wire.config.wire.d_z)
    two = wire.encode(["Ada lives in Oslo and drives a red car.", "Ada."])
    read = wire.inject("llama", two)
    numbers = [
        wire.num_positions(text) for text in ("Ada lives in Oslo and drives a red car.", "Ada.")
    ]
    assert numbers[0] == read.vectors.shape[1] > numbers[1]


@pytest.mark.parametrize("name", ["{}/nope", "./nope", "~/nope", "a/b/c"])
def test_a_folder_that_is_not_there_is_not_asked_of_the_hub(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        latentwire.load_wire(name.format(tmp_path))


def test_what_the_hub_cannot_give_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="'exported/nope', which is no folder here"):
        latentwire.load_wire("exported/nope")


def test_the_package_names_what_it_offers() -> None:
    assert {"load_wire", "load_reader", "ConfigError"} <= set(dir(latentwire))
    assert latentwire.ConfigError is ConfigError
    with pytest.raises(AttributeError, match="nothing_of_it"):
        _ = latentwire.nothing_of_it


def without(tree: dict[str, Any], *keys: str) -> None:
    for key in keys[:-1]:
        tree = tree[key]
    del tree[keys[-1]]


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no shape": lambda tree: without(tree, "decoders", "llama", "shape"),
    "a list of decoders": lambda tree: tree.update(decoders=[]),
    "an unknown size": lambda tree: tree["decoders"]["llama"]["shape"].update(hidden_size="x"),
    "no place": lambda tree: without(tree, "place"),
    "a place of no stage": lambda tree: tree["place"].update(stage="\x1b[2J"),
    "no width": lambda tree: tree["config"]["wire"].update(d_z=0),
    "too much width": lambda tree: tree["config"]["wire"].update(d_z=10**9),
    "no ratio": lambda tree: tree["config"]["wire"].update(ratio=0),
    "an unknown key": lambda tree: tree["config"].update(foo=1),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_description_of_no_wire_is_refused(
    name: str, trained: tuple[Path, list[str]], tmp_path: Path
) -> None:
    out = exported(trained, tmp_path / "wire")
    tree = json.loads((out / "config.json").read_text())
    DAMAGES[name](tree)
    (out / "config.json").write_text(json.dumps(tree))
    with pytest.raises(ConfigError) as caught:
        latentwire.load_wire(out)
    assert str(out) in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_an_encoder_that_is_not_whole_is_refused(
    name: str, trained: tuple[Path, list[str]], tmp_path: Path
) -> None:
    out = exported(trained, tmp_path / "wire")
    for damage in ("{", None):
        (out / "encoder" / name).unlink(missing_ok=True)
        if damage is not None:
            (out / "encoder" / name).write_text(damage)
        with pytest.raises(ConfigError) as caught:
            latentwire.load_wire(out)
        assert str(out) in str(caught.value)


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "format", "tensor"])
def test_a_damaged_export_is_refused_by_file(
    damage: str, trained: tuple[Path, list[str]], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    out = exported(trained, tmp_path / "wire")
    if damage == "format":
        tree = json.loads((out / "config.json").read_text()) | {"latentwire_format": 9}
        (out / "config.json").write_text(json.dumps(tree))
    elif damage == "tensor":
        weights = load_file(out / "model.safetensors")
        weights.pop(sorted(weights)[0])
        save_file(weights, out / "model.safetensors")
    else:
        (out / damage).write_bytes(b"{")
    with pytest.raises(ConfigError) as caught:
        latentwire.load_wire(out)
    named = {"format": "config.json", "tensor": "model.safetensors"}.get(damage, damage)
    assert named in str(caught.value)


@pytest.mark.slow
def test_an_export_evaluates_as_the_run_did(
    trained: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, _ = trained
    out = exported(trained, tmp_path / "wire")
    options = [f"run.root={tmp_path / 'runs'}", f"checkpoint.root={tmp_path / 'checkpoints'}"]
    found = python("-m", "latentwire.cli", "eval", "--wire", str(out), *options, nproc=2)
    assert found.returncode == 0, found.stderr
    own = json.loads((folder / "metrics.json").read_text())
    again = json.loads((tmp_path / "runs" / "test-exported" / "metrics.json").read_text())
    assert again.pop("checkpoint")["which"] == "exported"
    own.pop("checkpoint")
    assert again == own
    assert not (tmp_path / "checkpoints").exists(), "it has no checkpoints, and makes no place"
    refused = python("-m", "latentwire.cli", "train", "--wire", str(out))
    assert refused.returncode == 2 and "evaluated, not trained" in refused.stderr
    refused = python("-m", "latentwire.cli", "eval", "--wire", str(tmp_path))
    assert refused.returncode == 2 and "is no exported wire" in refused.stderr
