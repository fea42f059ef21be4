"""The scripts of launch/ as a user starts them; what they only pass on is tested where it is."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, small_overrides
from test_environment import CASES, LISTS

from latentwire import cli, config_file

LAUNCH = REPOSITORY / "launch"
SCRIPTS = sorted(
    str(path.relative_to(LAUNCH))
    for pattern in ("*.sh", "slurm/*")
    for path in LAUNCH.glob(pattern)
)
SOURCED = ("common.sh", "slurm/env.sh")
SUBMITTED = tuple(name for name in SCRIPTS if name.endswith(".sbatch"))
SINGLE, MULTI = "run_llama_single.sh", "run_scoped_softprompt_multi.sh"


def start(
    script: str, *arguments: str, cwd: Path, timeout: float = 120, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A script in an environment without any of the variables but those given."""
    ours = {*CASES, *LISTS, "NPROC", "BASE_TAG", "WORLD_SIZE", "RANK"}
    inherited = {key: value for key, value in os.environ.items() if key not in ours}
    settings = {
        "LATENTWIRE_SKIP_SETUP": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    return subprocess.run(
        [LAUNCH / script, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env=inherited | settings | variables,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_script_is_well_formed(script: str) -> None:
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    assert os.access(LAUNCH / script, os.X_OK) == (script not in SOURCED + SUBMITTED)
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck for the rest")
    subprocess.run(["shellcheck", "-x", LAUNCH / script], check=True, cwd=REPOSITORY)


@pytest.mark.parametrize("script", [SINGLE, MULTI])
def test_help_is_the_scripts_own_comment(script: str, tmp_path: Path) -> None:
    result = start(script, "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert f"launch/{script} [--hero]" in result.stdout
    assert "set -euo" not in result.stdout and "#" not in result.stdout
    wrong = start(script, "train.stage_b.steps=3", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "behind --" in wrong.stderr


def resolved(printed: str) -> dict[str, Any]:
    """The configuration that a dry run prints."""
    found: dict[str, Any] = yaml.safe_load(re.split(r"(?m)^\d+ ranks, ", printed)[0])
    return found


def test_a_smoke_run_on_the_cpu_is_one_decoder_with_deep_prefix(
    embedded_pair: Path, tmp_path: Path
) -> None:
    result = start(
        SINGLE,
        *("--", "--dry-run", "train.stage_b.steps=7", "--gist_weight", "0.3"),
        cwd=tmp_path,
        USE_GIST_HEAD="1",
        D_Z="64",
        RUN_TAG="mine",
    )
    assert result.returncode == 0, result.stderr
    assert "1 ranks, " in result.stdout
    config = resolved(result.stdout)
    assert list(config["decoders"]) == ["llama"]
    assert config["adapter"]["use_deep_prefix"] is True
    assert config["gist"]["use_gist_head"] is True
    assert config["objectives"]["gist"] == 0.3
    assert (config["wire"]["d_z"], config["run"]["tag"]) == (64, "mine")
    assert config["train"]["stage_b"]["steps"] == 7, "behind -- wins"
    assert not (tmp_path / "runs").exists()


def test_a_hero_run_of_two_decoders_warns_of_its_base(embedded_pair: Path, tmp_path: Path) -> None:
    result = start(MULTI, "--hero", "--", "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "warning: runs/scoped_softprompt/accept.json" in result.stderr
    assert "2 ranks, separate" in result.stdout
    config = resolved(result.stdout)
    assert list(config["decoders"]) == ["llama", "qwen"]
    assert config["gist"]["use_gist_head"] is True
    hero = config_file.load("hero")
    assert config["train"]["stage_b"]["steps"] == hero.train.stage_b.steps


def test_list_variables_are_a_sweep(embedded_pair: Path, tmp_path: Path) -> None:
    result = start(
        SINGLE, "--", "--dry-run", cwd=tmp_path, LATENT_LEN_LIST="8,16", D_Z_LIST="64,128"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [
        f"llama_single-latent_len{length}-d_z{width}" for length in (8, 16) for width in (64, 128)
    ]


def test_every_bad_variable_ends_with_code_two_before_anything_starts(tmp_path: Path) -> None:
    result = start(SINGLE, cwd=tmp_path, LATENT_LEN="abc", D_Z="0", USE_GIST_HEAD="2")
    assert result.returncode == 2
    for name in ("LATENT_LEN=abc: give", "D_Z=0: give", "USE_GIST_HEAD=2: give"):
        assert name in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_a_runner_trains_on_gpus_fits_four_of_80_gb(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the plan, which says that it would not without what the runners set."""
    shell = (REPOSITORY / "launch" / "common.sh").read_text(encoding="utf-8")
    on_gpus = re.findall(r"base\+=\((decoders\.\S+=true)\)", shell)
    assert len(on_gpus) == 2
    ours = ["plan", "--recipe", "squad_8b", "--gpus-per-node", "4", "--gpu-memory", "80"]
    ours += ["--use_deep_prefix", "--use_gist_head"]
    assert cli.main(ours) == 1
    assert cli.main([*ours, *on_gpus]) == 0
    capsys.readouterr()


def test_gpus_that_are_named_and_not_there_are_an_error(tmp_path: Path) -> None:
    result = start(SINGLE, cwd=tmp_path, CUDA_VISIBLE_DEVICES="97,98")
    assert result.returncode == 2
    assert "CUDA_VISIBLE_DEVICES=97,98 names 2 GPUs" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("script", "decoders"), [(SINGLE, ["llama"]), (MULTI, ["llama", "qwen"])])
def test_a_runner_leaves_a_whole_run(
    script: str, decoders: list[str], pair: Path, tmp_path: Path
) -> None:
    """A few steps of the random pair; paths with spaces, and a stream of one's own."""
    folder = tmp_path / "some where"
    folder.mkdir()
    models = {f"{name.upper()}_ID": str(pair / name) for name in decoders}
    kept = ("encoder.model", "train.", "wire.d_z", "eval.", "diagnostics.", "objectives.first")
    small = [text for text in small_overrides(pair, folder) if text.startswith(kept)]
    result = start(
        script,
        *("--", *small, "--diagnostic_log", "own log/stream.jsonl"),
        cwd=folder,
        timeout=280,
        RUN_TAG="t",
        **models,
    )
    assert result.returncode == 0, result.stderr
    run = folder / "runs" / "t"
    for name in ("pipeline.log", "metrics.json", "predictions.jsonl", "ckpt/stageB"):
        assert (run / name).exists(), name
    rows = (folder / "own log" / "stream.jsonl").read_text().splitlines()
    assert len(rows) == 4 * len(decoders)
    assert not (run / "diagnostics.jsonl").exists()
    status = yaml.safe_load((run / "status.json").read_text())
    assert (status["state"], status["files"]["diagnostics"]) == ("finished", "own log/stream.jsonl")


# --- torchrun


def test_torchrun_refuses_what_makes_no_sense_before_anything_starts(tmp_path: Path) -> None:
    for variables, words in (
        ({"NNODES": "two"}, "NNODES must be a whole number, 1 or more, not 'two'"),
        ({"NNODES": "2"}, "NNODES=2 needs HEAD_NODE"),
        ({"MAX_RESTARTS": "-1"}, "MAX_RESTARTS must be"),
        ({"RDZV_TIMEOUT": "5"}, "RDZV_TIMEOUT must be a whole number, 60 or more"),
        ({"NPROC": "0"}, "NPROC must be a positive integer"),
    ):
        result = start("torchrun.sh", "--recipe", "smoke", cwd=tmp_path, **variables)
        assert result.returncode == 2 and words in result.stderr, result.stderr
    assert "launch/torchrun.sh [train|eval]" in start("torchrun.sh", "-h", cwd=tmp_path).stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("first", ["train", "eval"])
def test_torchrun_hands_its_arguments_on(first: str, checkout: Path) -> None:
    (checkout / "launch").mkdir()
    for name in ("torchrun.sh", "common.sh"):
        shutil.copy(LAUNCH / name, checkout / "launch")
    environment = {key: value for key, value in os.environ.items() if key != "NPROC"}
    subprocess.run(
        [checkout / "launch" / "torchrun.sh", first, "--recipe", "a b"],
        check=True,
        capture_output=True,
        cwd=checkout,
        env=environment
        | {"LATENTWIRE_SKIP_SETUP": "1", "NNODES": "3", "NPROC": "4", "HEAD_NODE": "h"}
        | {"RDZV_PORT": "7", "RDZV_ID": "j", "MAX_RESTARTS": "2", "LOG_DIR": "l"},
    )
    (call,) = (checkout / ".venv" / "bin" / "calls").read_text().splitlines()
    for word in ("--nnodes=3", "--nproc-per-node=4", "--rdzv-endpoint=h:7", "--rdzv-id=j"):
        assert f" {word} " in call
    assert " --max-restarts=2 --log-dir=l " in call
    module = "latentwire.train" if first == "train" else "latentwire.cli eval"
    assert call.endswith(f"-m {module} --recipe a b")


# --- what a run needs and lacks

FAKE_PYTHON = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then cat "$(dirname "$0")/$3" 2>/dev/null || echo none; exit; fi
echo "$@" >>"$(dirname "$0")/calls"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose interpreter only notes what it is asked to install."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    interpreter = tmp_path / ".venv" / "bin" / "python"
    interpreter.write_text(FAKE_PYTHON)
    interpreter.chmod(0o755)
    shutil.copy(REPOSITORY / "requirements.txt", tmp_path)
    return tmp_path


def install(checkout: Path, *packages: str, **variables: str) -> tuple[int, str, list[str]]:
    """Code, what was said, and what was installed."""
    script = f'set -euo pipefail; root=$1; name=test; . "{LAUNCH}/common.sh"; shift; '
    result = subprocess.run(
        ["bash", "-c", f'{script} install_needed "$@"', "-", checkout, *packages],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], **variables},
    )
    calls = checkout / ".venv" / "bin" / "calls"
    lines = calls.read_text().splitlines() if calls.exists() else []
    return result.returncode, result.stderr, [line.split()[-1] for line in lines]


def pin(package: str) -> str:
    text = (REPOSITORY / "requirements.txt").read_text()
    (version,) = re.findall(rf"^{package}==(\S+)$", text, flags=re.MULTILINE)
    return str(version)


@pytest.mark.parametrize("package", ["peft", "accelerate", "bitsandbytes"])
def test_a_missing_package_is_installed_at_its_pin_and_said(checkout: Path, package: str) -> None:
    wanted = f"{package}=={pin(package)}"
    code, said, installed = install(checkout, package)
    assert (code, installed) == (0, [wanted])
    assert f"needs {wanted}, and .venv has none: installing" in said


def test_another_version_is_replaced_and_the_right_one_left_alone(checkout: Path) -> None:
    (checkout / ".venv" / "bin" / "peft").write_text("0.1.0\n")
    (checkout / ".venv" / "bin" / "accelerate").write_text(pin("accelerate") + "\n")
    code, said, installed = install(checkout, "peft", "accelerate")
    assert (code, installed) == (0, [f"peft=={pin('peft')}"])
    assert ".venv has 0.1.0" in said


def test_without_set_up_what_is_missing_is_an_error(checkout: Path) -> None:
    code, said, installed = install(checkout, "peft", LATENTWIRE_SKIP_SETUP="1")
    assert (code, installed) == (2, [])
    assert "installs nothing" in said
