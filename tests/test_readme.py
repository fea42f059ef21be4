"""What README says one can run, one can run: every command of it is checked here."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import REPOSITORY

from latentwire import cli, config_file
from latentwire.distributed import topology
from latentwire.train import main

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """Every command of the bash blocks, continued lines joined, comments dropped."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := line.split("  #")[0].strip()) and words[0] != "#"]


def train_commands() -> list[str]:
    return [line for line in commands() if "-m latentwire." in line]


def test_every_command_is_of_a_known_kind() -> None:
    """What is not a trainer's command is run by test_quickstart, test_tiny, or this very suite."""
    others = [line.split()[0] for line in commands() if line not in train_commands()]
    known = {"./launch/quickstart.sh", "./tests/run.sh", ".venv/bin/latentwire"}
    assert set(others) == known
    assert len(train_commands()) >= 6


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
    (tmp_path / "my.jsonl").write_text(
        "".join(
            f'{{"context": "text {i}", "question": "which?", "answers": ["{i}"]}}\n'
            for i in range(30)
        )
    )
    squad = '{"context": "text %d", "qas": [{"question": "which?", "answers": [{"text": "%d"}]}]}'
    paragraphs = ",".join(
        f'{{"title": "{i}", "paragraphs": [{squad % (i, i)}]}}' for i in range(30)
    )
    (tmp_path / "train-v1.1.json").write_text(f'{{"data": [{paragraphs}]}}')
    (tmp_path / "ds_configs").symlink_to(REPOSITORY / "ds_configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    assert main(["--dry-run", *(word for word in arguments if word != "--dry-run")]) == 0


def test_tiny_build_is_the_command_readme_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = [line for line in commands() if "tiny build" in line]
    arguments = shlex.split(line)[1:]
    arguments[arguments.index("--out") + 1] = str(tmp_path)
    assert cli.main([*arguments, "--only", "llama", "--steps", "1"]) == 0
    assert (tmp_path / "llama" / "model.safetensors").is_file()
    assert "em" in capsys.readouterr().out


def test_the_tree_names_what_is_there() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    names = re.findall(r"([\w/]+\.py|[\w/]+/)(?=\s)", tree)
    for name in names:
        roots = (REPOSITORY, REPOSITORY / "latentwire")
        assert any((root / name).exists() for root in roots), name
