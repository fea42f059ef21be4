"""An exported wire whose encoder brings its own code: it runs where the one who loads says so."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import small_overrides

import latentwire
from latentwire import config_file
from latentwire.ask import main as ask
from latentwire.checkpoint_tool import main as checkpoint
from latentwire.config import ConfigError
from latentwire.testing import run_distributed
from latentwire.training import run
from latentwire.training.exported_eval import exported_config
from latentwire.training.preflight import preflight
from latentwire.wire.exported import ExportedWire

CONFIGURATION = """
from transformers import LlamaConfig


class OwnConfig(LlamaConfig):
    model_type = "own_code"
"""
MODEL = """
from transformers import LlamaModel

from .configuration_own import OwnConfig


class OwnModel(LlamaModel):
    config_class = OwnConfig
"""


def train_on_rank(rank: int, world_size: int, overrides: list[str]) -> str:
    return run.train(preflight(config_file.load("smoke", overrides), world_size=world_size)).state


@pytest.fixture(scope="module")
def exported(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("code")
    own = root / "own"
    shutil.copytree(pair / "llama", own)
    tree = json.loads((own / "config.json").read_text())
    tree |= {"model_type": "own_code", "architectures": ["OwnModel"]}
    tree["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModel": "modeling_own.OwnModel",
    }
    (own / "config.json").write_text(json.dumps(tree))
    (own / "configuration_own.py").write_text(CONFIGURATION)
    (own / "modeling_own.py").write_text(MODEL)
    overrides = small_overrides(
        pair,
        root,
        "train.stage_a.steps=1",
        "train.stage_b.steps=0",
        "encoder.trust_remote_code=true",
    )
    overrides.append(f"encoder.model={own}")
    assert run_distributed(train_on_rank, 1, overrides) == ["finished"]
    out = root / "wire"
    assert checkpoint(["export", str(root / "runs" / "test"), str(out)]) == 0
    shutil.rmtree(own)
    return out


def test_it_reads_where_its_code_is_trusted(exported: Path) -> None:
    assert sorted(path.name for path in (exported / "encoder").glob("*.py")) == [
        *("configuration_own.py", "modeling_own.py")
    ]
    wire = latentwire.load_wire(exported, trust_remote_code=True)
    assert torch.isfinite(wire.encode(["Mia lives in Oslo."]).vectors).all()
    assert type(wire.wire.shared.encoder.backbone.model).__name__ == "OwnModel"


def test_what_the_export_says_of_trust_does_not_count(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = json.loads((exported / "config.json").read_text())["config"]
    assert tree["encoder"]["trust_remote_code"] is True
    own = r"code of their own is brought by encoder \(.*/own, revision main\); read it"
    with pytest.raises(ConfigError, match=f"{own}.*give trust_remote_code=True"):
        latentwire.load_wire(exported)
    with pytest.raises(ConfigError, match=f"{own}.*give encoder.trust_remote_code=true"):
        exported_config(exported, [])
    assert exported_config(exported, ["encoder.trust_remote_code=true"]).encoder.trust_remote_code
    assert ask([str(exported), "--text", "a"]) == 2
    assert "give --trust-remote-code if you trust it" in capsys.readouterr().err
    only = ["--decoder", "qwen", "--question", "b?", "--trust-remote-code"]
    assert ask([str(exported), "--text", "a", *only]) == 0


def test_an_export_cannot_trust_itself(exported: Path, tmp_path: Path) -> None:
    """The hub library takes from a file of the export what its caller has not given."""
    hostile = tmp_path / "hostile"
    shutil.copytree(exported, hostile)
    tree = json.loads((hostile / "config.json").read_text())
    (hostile / "config.json").write_text(json.dumps({**tree, "trust_remote_code": True}))
    with pytest.raises(ConfigError, match="code of their own is brought by encoder"):
        ExportedWire.from_pretrained(str(hostile))
    assert ExportedWire.from_pretrained(str(hostile), trust_remote_code=True).decoders


def test_an_export_cannot_show_one_decoder_and_load_another(exported: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(exported, hostile)
    tree = json.loads((hostile / "config.json").read_text())
    tree["config"]["decoders"]["qwen"] |= {"model": "stranger/other", "trust_remote_code": True}
    (hostile / "config.json").write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match="`decoders` names .* and `config` .*stranger/other"):
        latentwire.load_wire(hostile, trust_remote_code=True)


def test_an_export_does_not_say_where_files_go(exported: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(exported, hostile)
    tree = json.loads((hostile / "config.json").read_text())
    tree["config"]["run"]["root"] = tree["config"]["checkpoint"]["root"] = "/elsewhere"
    tree["config"]["decoders"]["qwen"]["trust_remote_code"] = True
    (hostile / "config.json").write_text(json.dumps(tree))
    config = exported_config(hostile, ["encoder.trust_remote_code=true"])
    assert (config.run.root, config.checkpoint.root) == ("runs", "checkpoints")
    assert not config.decoders["qwen"].trust_remote_code
