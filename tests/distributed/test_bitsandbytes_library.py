"""What keeps bitsandbytes from doing its part is said before a run starts, with the way out."""

import importlib.util
import json
from pathlib import Path

import pytest
from conftest import small_overrides

from latentwire import config_file
from latentwire.config import ConfigError
from latentwire.distributed import bitsandbytes_library
from latentwire.distributed.bitsandbytes_library import library_problem
from latentwire.training.preflight import preflight

ASKED = (
    "sharding.backend=fsdp",
    "optim.optimizer=adamw8bit",
    "decoders.llama.quantization=nf4",
    "decoders.qwen.quantization=int8",
)


def refusal(pair: Path, tmp_path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        preflight(
            config_file.load("smoke", small_overrides(pair, tmp_path, *overrides)), world_size=1
        )
    return caught.value.problems


def test_the_installed_library_does_all_of_it(pair: Path, tmp_path: Path) -> None:
    assert library_problem(optimizer=True) is None
    preflight(config_file.load("smoke", small_overrides(pair, tmp_path, *ASKED)), world_size=1)


def test_a_missing_library_is_named_with_every_key(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    need = "needs bitsandbytes; pip install -e '.[quant]', or use"
    assert refusal(pair, tmp_path, *ASKED) == [
        f"decoders.llama.quantization: 'nf4' {need} none",
        f"decoders.qwen.quantization: 'int8' {need} none",
        f"optim.optimizer: 'adamw8bit' {need} adamw",
    ]


def test_a_library_without_the_optimizer_is_refused_for_that_only(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitsandbytes_library, "_has_cpu_kernel", lambda name: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (problem,) = refusal(pair, tmp_path, *ASKED)
    assert problem.startswith("optim.optimizer: 'adamw8bit' needs a GPU with bitsandbytes")
    assert problem.endswith("or use adamw")


def test_a_library_that_cannot_load_is_refused(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitsandbytes import cextension

    broken = cextension.ErrorHandlerMockBNBNativeLibrary("no such file")
    monkeypatch.setattr(cextension, "lib", broken)
    problems = refusal(pair, tmp_path, *ASKED)
    assert len(problems) == 3
    assert all("python -m bitsandbytes says why" in problem for problem in problems)


def test_a_model_that_is_quantised_already_is_refused(pair: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in (pair / "llama").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    settings = json.loads((model / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (model / "config.json").write_text(json.dumps(settings))
    (problem,) = refusal(
        pair, tmp_path, f"decoders.llama.model={model}", "decoders.llama.quantization=nf4"
    )
    assert problem.startswith("decoders.llama.quantization: 'nf4', but ")
    assert "quantised already" in problem
