"""Models of the tests with another tokenizer than their own."""

import json
import shutil
from pathlib import Path


def merging(folder: Path, target: Path) -> Path:
    """A copy of a model whose tokenizer has no word boundaries and merges a colon with a space."""
    shutil.copytree(folder, target)
    path = target / "tokenizer.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    tree["model"]["vocab"][":\u0120"] = len(tree["model"]["vocab"]) + len(tree["added_tokens"])
    tree["model"]["merges"].insert(0, [":", "\u0120"])
    path.write_text(json.dumps(tree), encoding="utf-8")
    return target


def with_chat(folder: Path, target: Path, template: str) -> Path:
    """A copy of a model whose tokenizer has a chat template."""
    shutil.copytree(folder, target)
    (target / "chat_template.jinja").write_text(template, encoding="utf-8")
    return target
