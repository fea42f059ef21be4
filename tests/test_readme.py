"""What README says one can run, one can run: every command of it is checked here."""

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import REPOSITORY
from report_cases import write_run
from test_accept import Run
from test_checkpoint_tool import trained  # noqa: F401
from test_launch import MULTI, SINGLE, start
from test_tiny_build import narrow_specs

from latentwire import bench, cli, config_file
from latentwire.arguments import FLAGS, parse
from latentwire.benching import plain_loop
from latentwire.config import OBJECTIVES, flatten
from latentwire.distributed import topology
from latentwire.train import main
from latentwire.wire.exported import ExportedWire

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
LAUNCH = (REPOSITORY / "launch" / "README.md").read_text(encoding="utf-8")
SCALING = (REPOSITORY / "launch" / "SCALING.md").read_text(encoding="utf-8")
RUNNERS = (f"./launch/{SINGLE}", f"./launch/{MULTI}")
ASSIGNMENT = re.compile(r"[A-Z_]+=")


def commands() -> list[str]:
    """Every command of the bash blocks, continued lines joined, comments dropped."""
    blocks = re.findall(r"```bash\n(.*?)```", README + LAUNCH + SCALING, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = (line.split("  #")[0].strip() for line in lines)
    return list(dict.fromkeys(words for words in found if words and words[0] != "#"))


def train_commands() -> list[str]:
    return [line for line in commands() if "-m latentwire." in line and not is_bench(line)]


def is_bench(line: str) -> bool:
    return "-m latentwire.bench" in line or "latentwire bench" in line


def program(line: str) -> str:
    """What a command starts, behind the variables it sets."""
    return next(word for word in shlex.split(line) if not ASSIGNMENT.match(word))


def latentwire_commands(name: str) -> list[list[str]]:
    """The arguments of each ``latentwire <name>``."""
    found = [shlex.split(line) for line in commands() if program(line) == ".venv/bin/latentwire"]
    return [words[1:] for words in found if words[1] == name]


def test_every_command_is_of_a_known_kind() -> None:
    """What is not a trainer's command is run below, by test_quickstart, or is this very suite."""
    others = [line for line in commands() if line not in train_commands()]
    others = [line for line in others if "-m latentwire.bench" not in line]
    ci = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    checks = [line for line in others if line.startswith(".venv/bin/python -m ")]
    assert len(checks) == 3 and all(f" {line}\n" in ci for line in checks)
    others = [line for line in others if line not in checks]
    scripts = {"./launch/quickstart.sh", "./launch/setup.sh", "./tests/run.sh", *RUNNERS}
    scripts |= {"./launch/torchrun.sh", "sbatch", ".ci/run"}
    assert {program(line) for line in others} == {*scripts, ".venv/bin/latentwire"}
    names = [line.split()[1] for line in others if program(line) == ".venv/bin/latentwire"]
    known = {"tiny", "sweep", "accept", "ablate", "checkpoint", "eval", "watch", "report", "plan"}
    known |= {"bench", "ask"}
    assert set(names) == known
    assert len(train_commands()) >= 20


@pytest.mark.parametrize("line", train_commands())
def test_a_trainer_command_is_valid(
    line: str, embedded_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dry-runs it at its own world size; for hub models the layout alone, without the hub."""
    words = shlex.split(line)
    module = words.index("-m") + 1
    sizes = {"--nproc-per-node": 1, "--nnodes": 1}
    for word in words[1 : module - 1]:
        name, _, value = word.partition("=")
        if name in sizes:
            sizes[name] = int(value)
    world_size = sizes["--nproc-per-node"] * sizes["--nnodes"]
    arguments = words[module + 1 :]
    if words[module] == "latentwire.cli":
        assert arguments.pop(0) == "eval"
    recipe = arguments[arguments.index("--recipe") + 1]
    overrides = [word for word in arguments if "=" in word]
    config = config_file.load(recipe, overrides)
    layout = topology.plan(config.decoders, placement=config.placement, world_size=world_size)
    assert not topology.batch_problems(
        layout, batch_size=config.train.batch_size, accumulation=config.train.accumulation
    )
    if recipe == "squad_8b":
        return
    for name in ("my.jsonl", "pieces.jsonl"):
        (tmp_path / name).write_text(
            "".join(
                f'{{"context": "text {i}", "question": "which?", "answers": ["{i}"]}}\n'
                for i in range(30)
            )
        )
    squad = '{"context": "text %d", "qas": [{"question": "which?", "answers": [{"text": "%d"}]}]}'
    for name, numbers in (
        ("train-v1.1.json", range(30)),
        ("dev-v1.1.json", range(30, 40)),
    ):
        paragraphs = ",".join(
            f'{{"title": "{i}", "paragraphs": [{squad % (i, i)}]}}' for i in numbers
        )
        (tmp_path / name).write_text(f'{{"data": [{paragraphs}]}}')
    hotpot = [
        {
            "_id": str(i),
            "question": "which?",
            "answer": str(i),
            "type": "bridge",
            "context": [[f"page {i}", [f"text {i}"]], ["other", ["more"]]],
            "supporting_facts": [[f"page {i}", 0]],
        }
        for i in range(30)
    ]
    (tmp_path / "hotpot_train_v1.1.json").write_text(json.dumps(hotpot))
    (tmp_path / "ds_configs").symlink_to(REPOSITORY / "ds_configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    assert main(["--dry-run", *(word for word in arguments if word != "--dry-run")]) == 0


@pytest.mark.parametrize(
    "line",
    [line for line in commands() if program(line) in ("./launch/torchrun.sh", "sbatch")],
)
def test_a_cluster_command_is_valid(line: str) -> None:
    """Its configuration and layout; tests/cluster/ starts these scripts."""
    words = shlex.split(line)
    variables = dict(word.split("=", 1) for word in words[: words.index(program(line))])
    scripts = [word for word in words if word.startswith(("./launch/", "launch/"))]
    assert len(scripts) == 1 and (REPOSITORY / scripts[0]).is_file()
    arguments = words[words.index(scripts[0]) + 1 :]
    if "--test-only" in words:
        assert not arguments
        return
    options = parse([word for word in arguments if word not in ("train", "eval")])
    config = config_file.load(options.recipe, options.overrides)
    num_nodes, per_node = int(variables.get("NNODES", 1)), int(variables.get("NPROC", 8))
    if program(line) == "sbatch":
        text = (REPOSITORY / scripts[0]).read_text()
        num_nodes, per_node = (
            int(re.findall(rf"(?m)^#SBATCH --{name}=(\d+)$", text)[0])
            for name in ("nodes", "gpus-per-node")
        )
    layout = topology.plan(
        config.decoders,
        placement=config.placement,
        world_size=num_nodes * per_node,
        ranks_per_node=per_node,
    )
    assert layout.warning() == ""
    assert not topology.batch_problems(
        layout, batch_size=config.train.batch_size, accumulation=config.train.accumulation
    )


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in commands() if program(line) in RUNNERS])
def test_a_runner_command_is_valid(line: str, embedded_pair: Path, tmp_path: Path) -> None:
    """Dry-runs it on the CPU."""
    words = shlex.split(line)
    script = words.index(program(line))
    variables = dict(word.split("=", 1) for word in words[:script])
    dashes = [] if "--" in words else ["--"]
    name = words[script].removeprefix("./launch/")
    result = start(name, *words[script + 1 :], *dashes, "--dry-run", cwd=tmp_path, **variables)
    assert result.returncode == 0, result.stderr
    assert variables.get("RUN_TAG", "") in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", latentwire_commands("sweep"), ids=" ".join)
def test_a_sweep_command_is_valid(
    arguments: list[str],
    embedded_pair: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (file,) = re.findall(r"```yaml\n(.*?)```", LAUNCH, flags=re.DOTALL)
    (tmp_path / "ratios.yaml").write_text(file)
    (tmp_path / "ds_configs").symlink_to(REPOSITORY / "ds_configs")
    monkeypatch.chdir(tmp_path)
    assert cli.main([*arguments, "--dry-run"]) == 0
    assert {"ratios-ratio5", "ratios-ratio10"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize("arguments", latentwire_commands("ablate"), ids=" ".join)
def test_an_ablate_command_is_valid(
    arguments: list[str],
    embedded_pair: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert cli.main([*arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("default-s0: known\n")


@pytest.mark.parametrize("line", [line for line in commands() if is_bench(line)])
def test_a_bench_command_is_valid(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recipe, flags and keys; tests/test_bench.py takes the steps."""
    words = shlex.split(line)
    first = words.index("latentwire.bench" if "latentwire.bench" in words else "bench") + 1
    asked: list[Sequence[str]] = []
    monkeypatch.setattr(bench, "_bench", lambda options, overrides: asked.append(overrides) or 0)
    assert bench.main(words[first:]) == 0
    options, overrides = bench._parse(words[first:])
    config = config_file.load(options["recipe"], overrides)
    assert asked == [overrides]
    if options["against"]:
        assert not plain_loop.problems(config)


@pytest.mark.parametrize("arguments", latentwire_commands("accept"), ids=" ".join)
def test_an_accept_command_is_valid(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(arguments[1])
    folder.parent.mkdir()
    Run(folder).write()
    assert cli.main(arguments) == 0
    assert (folder / "accept.json").is_file()


def test_the_checkpoint_commands_work_in_their_order(
    trained: tuple[Path, list[str]],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a run in the place of theirs; the evaluation is tested with the tool."""
    monkeypatch.chdir(tmp_path)
    own = (trained[0] / "ckpt").resolve()
    checkpoints = tmp_path / "checkpoints" / "quickstart"
    shutil.copytree(own, checkpoints)
    (checkpoints / "stageB").mkdir()
    (checkpoints / "stageA" / "step-00000002").rename(checkpoints / "stageB" / "step-00000500")
    run = tmp_path / "runs" / "quickstart"
    run.mkdir(parents=True)
    (run / "ckpt").symlink_to(checkpoints, target_is_directory=True)
    for arguments in latentwire_commands("checkpoint"):
        assert cli.main(arguments) == (1 if arguments[1] == "diff" else 0), arguments
    text = README.split("```python\n")[1].split("```")[0].replace("your-name/", "")
    monkeypatch.setattr(ExportedWire, "push_to_hub", lambda self, name: None)
    exec(text)
    for arguments in latentwire_commands("eval"):
        assert parse(arguments[1:]).wire == "exported/smoke"


@pytest.mark.parametrize("arguments", latentwire_commands("ask"), ids=" ".join)
def test_an_ask_command_is_valid(
    arguments: list[str],
    trained: tuple[Path, list[str]],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([arguments[0], str(trained[0]), *arguments[2:]]) == 0
    out = capsys.readouterr().out
    assert "llama reads " in out and "  qwen  wire  " in out


@pytest.mark.parametrize("arguments", latentwire_commands("watch"), ids=" ".join)
def test_a_watch_command_is_valid(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path(arguments[1]))
    assert cli.main(arguments) == 0
    assert "stage B: step 100" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", latentwire_commands("report"), ids=" ".join)
def test_a_report_command_is_valid(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [Path(word) for word in arguments if word.startswith("runs/")]
    assert folders
    for folder in folders:
        write_run(folder)
    assert cli.main(arguments) == 0
    text = Path(capsys.readouterr().out.strip()).read_text(encoding="utf-8")
    assert all(f"{folder.name}" in text for folder in folders)


@pytest.mark.parametrize("arguments", latentwire_commands("plan"), ids=" ".join)
def test_a_plan_command_is_valid(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """And prints what stands below it, where anything does."""
    assert cli.main(arguments) in (0, 1)
    out = capsys.readouterr().out.strip()
    words = " ".join(arguments)
    if words == "plan --scaling":
        assert out in SCALING
    if words == "plan --recipe squad_8b --gpus-per-node 8 --gpu-memory 40":
        assert f"```\n{out}\n```" in README


def test_its_pictures_are_there() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert [name for name in pictures if not (REPOSITORY / name).is_file()] == []


@pytest.mark.parametrize("arguments", latentwire_commands("tiny"), ids=" ".join)
def test_a_tiny_command_is_valid(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one step, with two small layers; on the CPU, whatever device it names."""
    arguments = list(arguments)
    arguments[arguments.index("--out") + 1] = str(tmp_path)
    if "--device" in arguments:
        arguments[arguments.index("--device") + 1] = "cpu"
    narrow_specs(monkeypatch)
    assert cli.main([*arguments, "--only", "llama", "--steps", "1", "--documents", "1"]) == 0
    assert (tmp_path / "llama" / "model.safetensors").is_file()


def test_the_tree_names_what_is_there() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    names = re.findall(r"([\w/]+\.py|[\w/]+/)(?=\s)", tree)
    for name in names:
        roots = (REPOSITORY, REPOSITORY / "latentwire")
        assert any((root / name).exists() for root in roots), name


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_has_its_line(objective: str) -> None:
    assert f"\n| `{objective}` |" in README


def test_every_flag_is_named() -> None:
    assert [name for name in FLAGS if f"`{name}" not in README] == []


def test_every_key_is_one() -> None:
    """Whole keys in code marks, or groups of keys; what is short for one is not looked at."""
    keys = flatten(config_file.load("smoke", []))
    groups = {key.split(".")[0] for key in keys if "." in key}
    marked = re.findall(r"`([a-z_]+(?:\.[a-z0-9_]+)+)(?:=[^`]*)?`", README + LAUNCH)
    files = {"diagnostics.jsonl", "validation.jsonl", "diagnostics.read", "diagnostics.follow"}
    named = {key for key in marked if key.split(".")[0] in groups} - files
    assert len(named) > 40
    assert [key for key in named if not any(f"{k}.".startswith(f"{key}.") for k in keys)] == []
