"""Ablations: their file, what is run again and what is not, and the report made of the results."""

import json
import os
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import small_overrides
from launching import python

from latentwire import ablate, config_file, points
from latentwire.ablating.file import read_file
from latentwire.ablating.report import COMPRESSION, PICTURE, REPORT
from latentwire.ablating.results import RESULTS, harvest, read_results
from latentwire.config import Config, ConfigError, flatten

TRAINER = """
import json, os, sys, time
from pathlib import Path
settings = dict(text.split("=", 1) for text in sys.argv[1:])
tag, folder = settings["run.tag"], Path(settings["run.root"]) / settings["run.tag"]
folder.mkdir(parents=True, exist_ok=True)
threads = os.environ.get("OMP_NUM_THREADS")
if (folder.parent / "meet").exists():
    # Side by side, each is put on its cores when it has begun already.
    deadline = time.monotonic() + 60
    while len(os.sched_getaffinity(0)) != int(threads):
        assert time.monotonic() < deadline, "never put on its cores"
        time.sleep(0.01)
with open(folder.parent / "started", "a") as file:
    cores = sorted(os.sched_getaffinity(0))
    file.write(f"{tag} {time.time()} {cores} {threads}\\n")
fail = (folder.parent / f"{tag.split('-')[0]}.fail").exists()
time.sleep(0.3)
if (folder.parent / "meet").exists():
    waited = 0.0
    while len((folder.parent / "started").read_text().splitlines()) < 2:
        time.sleep(0.1)
        waited += 0.1
        assert waited < 60, "alone"
width, seed = int(settings["wire.d_z"]), int(settings["run.seed"])
def right(arm, number):
    return arm == "text" or (arm.startswith("latent") and number * 16 < width + seed)
of_ratio = ("latent", "truncated_text", "wrong_wire", "zero_wire")
arms = ("text", "no_context", *of_ratio, *(f"{arm}@10" for arm in of_ratio))
lines = [
    {"arm": arm, "decoder": "a", "document": number, "prediction": "x" * right(arm, number),
     "answers": ["x"]}
    for arm in arms for number in range(8)
]
(folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
em = {arm: sum(right(arm, number) for number in range(8)) / 8 for arm in arms}
scores = {arm: {"em": em[arm], "compression_tokens": 4.5} for arm in arms}
(folder / "metrics.json").write_text(json.dumps({"decoders": {"a": {"arms": scores}}}))
damage = folder.parent / f"{tag.rpartition('-')[0]}.metrics"
if damage.exists():
    (folder / "metrics.json").write_text(damage.read_text())
rows = [
    {"stage": stage, "step": step, "mode": "mixed" if stage == "A" and step == 20 else "latent",
     "tf": 1 / step, "first_acc": step / 40, "sec_per_step": 0.25, "skipped": False}
    for stage, last in (("A", 20), ("B", 40)) for step in range(10, last + 1, 10)
]
(folder / "diagnostics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
status = {"state": "failed" if fail else "finished", "reason": "of the test"}
(folder / "status.json").write_text(json.dumps(status))
with open(folder.parent / "ended", "a") as file:
    file.write(f"{time.time()}\\n")
sys.exit(int(fail))
"""
"""Stands for the trainer where only the order of the runs is looked at: writes what one leaves."""
ROWS = {
    "default": {"part": "default", "seeds": [0, 1]},
    "wide": {"part": "wire", "change": {"wire.d_z": 64}, "learned": "Wider is better."},
    "wider": {"part": "wire", "change": {"wire.d_z": 128}},
}


@pytest.fixture
def file(pair: Path, tmp_path: Path) -> Path:
    given = ["wire.heads=1", *small_overrides(pair, tmp_path, "decoders.qwen=null", "wire.ratio=5")]
    ours = ("run.", "checkpoint.")
    overrides = dict(text.split("=", 1) for text in given if not text.startswith(ours))
    overrides |= {"wire.d_z": "32", "eval.ratios": "[10]"}
    values = {key: yaml.safe_load(value) for key, value in overrides.items()}
    return write(tmp_path / "rows.yaml", {"base": "smoke", "overrides": values, "rows": ROWS})


def write(path: Path, tree: object) -> Path:
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def change(file: Path, name: str, **changes: object) -> None:
    tree = yaml.safe_load(file.read_text())
    tree["rows"][name] |= changes
    write(file, tree)


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the stand-in in the trainer's place; returns the file of the runs it has started."""
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    monkeypatch.setattr(
        ablate, "command", lambda _, point: [sys.executable, str(script), *point.overrides]
    )
    # The stand-in leaves no config.yaml.
    monkeypatch.setattr(ablate, "is_finished", lambda plan: False)
    (tmp_path / "trials").mkdir()
    return tmp_path / "trials" / "started"


def started(trainer: Path) -> list[str]:
    """Rows and seeds, in the order they were started."""
    lines = trainer.read_text().splitlines() if trainer.exists() else []
    return [line.split()[0].rpartition("-")[0] for line in lines]


def call(file: Path, *more: str) -> int:
    return ablate.main(["--file", str(file), *folders(file.parent), *more])


def folders(tmp_path: Path) -> list[str]:
    names = {"out": "out", "runs": "trials", "checkpoints": "saved"}
    return [text for key, name in names.items() for text in (f"--{key}", str(tmp_path / name))]


TRIALS = ["default-s0", "wide-s0", "wider-s0", "default-s1"]


def test_every_row_runs_once_for_each_seed(file: Path, trainer: Path) -> None:
    assert call(file, "--jobs", "1") == 0
    assert started(trainer) == TRIALS, "the first seed of every row comes first"
    assert call(file, "--jobs", "1") == 0
    assert started(trainer) == TRIALS, "what is known does not run again"


def test_results_outlive_the_runs(file: Path, trainer: Path) -> None:
    assert call(file) == 0
    first = {path.name: path.read_text() for path in (file.parent / "out").iterdir()}
    assert first.keys() == {RESULTS, REPORT, PICTURE, COMPRESSION, "ablations-wire.svg"}
    for folder in (trainer.parent).iterdir():
        if folder.is_dir():
            (folder / "metrics.json").unlink()
    assert call(file) == 0
    assert sorted(started(trainer)) == sorted(TRIALS)
    assert {path.name: path.read_text() for path in (file.parent / "out").iterdir()} == first


def test_a_row_that_changed_runs_again_and_its_old_result_is_not_shown(
    file: Path, trainer: Path
) -> None:
    assert call(file, "--jobs", "1") == 0
    change(file, "wide", change={"wire.d_z": 96})
    assert call(file, "--jobs", "1", "--only", "default") == 0
    report = (file.parent / "out" / REPORT).read_text()
    assert re.search(r"\| wide +\| wire.d_z=96 +\| 0 +\| - ", report)
    assert call(file, "--jobs", "1") == 0
    assert started(trainer) == [*TRIALS, "wide-s0"]
    assert "wire.d_z=96" in (file.parent / "out" / REPORT).read_text()


def test_words_about_a_row_do_not_change_what_it_is(file: Path, trainer: Path) -> None:
    assert call(file) == 0
    change(file, "wide", learned="Something else.", part="width")
    assert call(file) == 0
    assert sorted(started(trainer)) == sorted(TRIALS)
    assert "Something else." in (file.parent / "out" / REPORT).read_text()


def test_a_dry_run_says_what_is_known(
    file: Path, trainer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(file, "--jobs", "1", "--only", "default") == 0
    capsys.readouterr()
    assert call(file, "--dry-run", "--only", "wide") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == TRIALS
    said = [line.partition(": ")[2] for line in lines]
    assert said == ["known", "to run", "left out by --only", "known"]
    assert started(trainer) == ["default-s0", "default-s1"]


def test_runs_go_side_by_side_each_on_its_own_cores(file: Path, trainer: Path) -> None:
    # The first goes on when the second has begun.
    (trainer.parent / "meet").touch()
    assert call(file, "--jobs", "2") == 0
    lines = [line.split(maxsplit=2) for line in trainer.read_text().splitlines()]
    begun = sorted(float(line[1]) for line in lines)
    ended = [float(line) for line in (trainer.parent / "ended").read_text().splitlines()]
    assert begun[2] >= min(ended), "the third waits for one of them"
    cores = {line[2] for line in lines}
    if len(os.sched_getaffinity(0)) > 1:
        first, second = (set(json.loads(text[: text.index("]") + 1])) for text in sorted(cores)[:2])
        assert not first & second
    assert all(re.search(r"\] \d+$", text) for text in cores), "threads as many as cores"


def test_runs_side_by_side_do_not_share_a_file_of_rows(
    file: Path, trainer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = yaml.safe_load(file.read_text())
    tree["overrides"]["diagnostics.diagnostic_log"] = str(file.parent / "rows.jsonl")
    write(file, tree)
    assert call(file, "--jobs", "2") == 2
    assert "diagnostics.diagnostic_log" in capsys.readouterr().err
    assert started(trainer) == []


def test_runs_go_side_by_side_each_on_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert points.devices() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [slot.device for slot in points._slots(3)] == ["3", "5", "3"]
    monkeypatch.setattr(points.torch.cuda, "device_count", lambda: 0)
    assert points.devices() == [] and points._slots(2)[0].device is None


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_place_that_takes_nothing_is_refused_before_the_first_trial(
    more: list[str], file: Path, trainer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file.parent / "out").write_text("mine")
    assert call(file, *more) == 2
    assert "--out: " in capsys.readouterr().err
    assert started(trainer) == [] and (file.parent / "out").read_text() == "mine"


def test_a_disk_that_is_full_ends_no_other_trial(
    file: Path,
    trainer: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ablate, "write_results", full)
    assert call(file, "--only", "default") == 1
    assert sorted(started(trainer)) == ["default-s0", "default-s1"]
    assert "default-s0: not taken in ([Errno 28] No space left" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ['{"decoders": {}}', "[]", '{"decoders": {"llama": 3}}', "{"])
def test_a_damaged_result_ends_no_other_trial(
    file: Path, trainer: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    (trainer.parent / "default-s0.metrics").write_text(damage)
    assert call(file, "--only", "default,wide") == 1
    said = capsys.readouterr().err
    assert "default-s0: not taken in" in said and "measures it anew" in said
    kept = json.loads((file.parent / "out" / "ablations.json").read_text())
    assert sorted(kept) == ["default-s1", "wide-s0"]


def test_a_failed_row_is_named_and_the_others_go_on(
    file: Path, trainer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = trainer.parent / "wide.fail"
    mark.touch()
    assert call(file) == 1
    assert sorted(started(trainer)) == sorted(TRIALS)
    assert "1 of 4 trials failed: wide-s0" in capsys.readouterr().err
    mark.unlink()
    assert call(file) == 0
    assert started(trainer)[len(TRIALS) :] == ["wide-s0"]


def test_the_report_is_of_the_results(file: Path, trainer: Path) -> None:
    assert call(file) == 0
    out = file.parent / "out"
    report = (out / REPORT).read_text()
    default, wide, wider = (
        next(line for line in report.splitlines() if line.startswith(f"| {name} ")) for name in ROWS
    )
    # 2 of 8 documents with d_z 32, 3 with seed 1; 4 with 64; all with 128.
    assert [cell.strip() for cell in default.split("|")][3:7] == ["2", "0.312", "0.312", "0.312"]
    assert [cell.strip() for cell in wide.split("|")][3:7] == ["1", "0.500", "0.500", "0.500"]
    assert "+0.250 (+" in wide
    assert "+0.750 (+" in wider
    assert "- `wide`: Wider is better." in report
    assert "seeds give 0.250, 0.375" in report
    for picture in (PICTURE, "ablations-wire.svg", COMPRESSION):
        text = (out / picture).read_text()
        ET.fromstring(text)
        assert f"]({picture})" in report
    assert (out / PICTURE).read_text().index(">wider<") < (out / PICTURE).read_text().index(
        ">wide<"
    ), "the best comes first"
    beside = (out / COMPRESSION).read_text()
    names = ("wire, a", "the text", "text as short as the wire", "wrong wire", "no context")
    assert all(f"<title>{name}</title>" in beside for name in names)


def test_a_curve_has_the_latent_steps_of_both_stages(file: Path, trainer: Path) -> None:
    assert call(file) == 0
    result = read_results(file.parent / "out" / RESULTS)["default-s0"]
    assert [point[0] for point in result.curve] == [10, 30, 40, 50, 60]
    assert result.curve[1][1:] == (0.1, 0.25)
    assert (result.num_steps, result.seconds_per_step) == (60, 0.25)
    carried = {"text": 1, "latent@5": 0.25, "latent@10": 0.25}
    assert {arm: em for arm, em in result.em["a"].items() if em} == carried
    assert {"wrong_wire@5", "zero_wire@10", "no_context"} <= result.em["a"].keys()
    assert result.wires == ["latent@5", "latent@10"]
    assert result.normalised_em("a", "latent@10") == 0.25
    assert result.asked == (1,) * 8
    assert result.right["a"]["latent@5"] == (1, 1, 0, 0, 0, 0, 0, 0)


def test_a_digest_names_what_is_trained_only() -> None:
    plain = Config()
    named = replace(plain, run=replace(plain.run, tag="other", root="elsewhere"))
    seeded = replace(plain, run=replace(plain.run, seed=1))
    wide = replace(plain, wire=replace(plain.wire, d_z=96))
    digests = [ablate.digest_of(config) for config in (plain, named, seeded, wide)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_key_left_at_its_default_is_not_in_a_digest() -> None:
    """So that results stay valid where the program gets new keys."""
    config = config_file.load("smoke")
    before = ablate.digest_of(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ablate,
            "flatten",
            lambda tree: {k: v for k, v in flatten(tree).items() if not k.endswith(".shard")},
        )
        assert len(ablate.flatten(config)) < len(flatten(config))
        assert ablate.digest_of(config) == before


def test_a_digest_does_not_depend_on_where_the_repository_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    digests = []
    for place in (tmp_path / "one", tmp_path / "two"):
        (place / "checkpoints" / "tiny" / "llama").mkdir(parents=True)
        for module in (ablate, config_file):
            monkeypatch.setattr(module, "REPOSITORY", place)
        config = config_file.load("smoke")
        assert config.encoder.model == str(place / "checkpoints" / "tiny" / "llama")
        digests.append(ablate.digest_of(config))
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ([], "must hold a mapping with the keys title, base, overrides, rows"),
        ({"rows": {}}, "rows: should map names to rows, the default first"),
        ({"rows": ROWS, "extra": 1}, "unknown key 'extra'"),
        ({"rows": {"a": {"change": {}}}}, "rows.a: part: missing"),
        ({"rows": {"a-b": {"part": "x"}}}, "rows.a-b: a name has letters, digits"),
        ({"rows": {"a": {"part": "x", "seeds": 3}}}, "rows.a: seeds: should be a list of whole"),
        ({"rows": {"a": {"part": "x", "seeds": [0, 0]}}}, "rows.a: seeds: [0, 0] should hold each"),
        ({"rows": {"a": {"part": "x", "what": 3}}}, "rows.a: unknown key 'what'"),
        ({"rows": {"a": {"part": "x", "learned": "By 0.2."}}}, "learned: has a number"),
        ({"rows": {"a": 1}}, "rows.a: should be a mapping"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, tree: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        read_file(write(tmp_path / "rows.yaml", tree))


def test_every_bad_row_is_said_before_the_first_starts(
    file: Path, trainer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(file, "wide", change={"wire.d_z": -1})
    change(file, "wider", change={"wire.none": 1})
    assert call(file) == 2
    message = capsys.readouterr().err
    assert "wide: wire.d_z" in message
    assert "wider: " in message
    assert "wire.none" in message
    assert not started(trainer)


@pytest.mark.parametrize(
    ("more", "expected"),
    [(("--only", "none"), "--only: no row 'none'"), (("--jobs", "0"), "--jobs: 0 must be 1")],
)
def test_a_bad_option_is_refused(
    file: Path, trainer: Path, capsys: pytest.CaptureFixture[str], more: list[str], expected: str
) -> None:
    assert call(file, *more) == 2
    assert expected in capsys.readouterr().err


def test_a_wrong_key_is_said_once_for_its_rows(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(file, "default", change={"wire.d_x": 9}, seeds=[0, 1])
    change(file, "wide", change={"wire.d_x": 9})
    assert call(file) == 2
    assert "\n  default, wide: wire.d_x: unknown key" in capsys.readouterr().err


def test_results_that_are_none_are_refused(
    file: Path, trainer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file.parent / "out").mkdir()
    (file.parent / "out" / RESULTS).write_text('{"default-s0": {}}')
    assert call(file) == 2
    assert f"{RESULTS}: is not a file of results" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_trial_is_trained_and_harvested(file: Path, tmp_path: Path) -> None:
    change(file, "wide", change={"train.stage_b.steps": 3})
    tree = yaml.safe_load(file.read_text())
    tree["rows"] = {name: tree["rows"][name] | {"seeds": [0]} for name in ("default", "wide")}
    write(file, tree)
    command = ("-m", "latentwire.cli", "ablate", "--file", str(file), *folders(tmp_path))
    result = python(*command, timeout=280)
    assert result.returncode == 0, result.stderr
    results = read_results(tmp_path / "out" / RESULTS)
    assert sorted(results) == ["default-s0", "wide-s0"]
    assert results["wide-s0"].num_steps == results["default-s0"].num_steps + 1
    assert results["wide-s0"].wires == ["latent@5", "latent@10"]
    run = min((tmp_path / "trials").iterdir())
    roots = {"root": str(tmp_path / "trials"), "checkpoints": str(tmp_path / "saved")}
    every = ablate.trials(read_file(file), **roots)
    (plan,) = [trial.point.plan for trial in every if trial.point.name == "default-s0"]
    own = harvest(run, plan.config, row="default", digest=results["default-s0"].digest)
    assert own == results["default-s0"]
