"""The package's own rules, read from its source: imports point down, nothing unsafe, no family."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "latentwire"
FLOORS: list[set[str]] = [
    {
        *{
            "cli",
            "train",
            *{"bench", "benching"},
            "plan",
            *{"watch", "reporting"},
            "arguments",
            "environment",
            "from_env",
            "accept",
            "ask",
        },
        *{
            "tiny_build",
            "checkpoint_tool",
            "points",
            "sweep",
            "sweep_table",
            "slurm",
            "ablate",
            "ablating",
            "svg",
        },
    },
    {"training"},
    {"report"},
    {"evaluation"},
    {"diagnostics", "checkpointing", "planning"},
    {"distributed"},
    {"objectives"},
    {"decoders"},
    {"wire"},
    {"data"},
    {
        *{"config", "config_checks", "config_file", "config_model", "config_training"},
        *{"collectives", "files", "strict_json", "strict_yaml", "version", "writable"},
    },
]
"""From the top; a module imports from its own floor and from those below."""
STRANGERS = {
    frozenset({"diagnostics", "checkpointing"}),
    frozenset({"diagnostics", "planning"}),
    frozenset({"checkpointing", "planning"}),
}
"""On one floor, but they may not import each other."""
EXEMPT = {"testing"}
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def sources() -> dict[str, str]:
    """Every module of the package by its path inside it."""
    return {
        path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(PACKAGE.rglob("*.py"))
    }


SOURCES = sources()


def module_of(path: str) -> str:
    return ".".join(["latentwire", *Path(path).with_suffix("").parts]).removesuffix(".__init__")


def names(source: str, path: str = "x.py") -> set[str]:
    """Dotted names that a module imports, anywhere in it, or uses as attributes of an import."""
    tree = ast.parse(source)
    package = module_of(path).split(".") if path.endswith("__init__.py") else None
    package = package or module_of(path).split(".")[:-1]
    aliases: dict[str, str] = {}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                found.add(item.name)
                aliases[item.asname or item.name.split(".")[0]] = (
                    item.name if item.asname else item.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for item in node.names:
                found.add(f"{stem}.{item.name}")
                aliases[item.asname or item.name] = f"{stem}.{item.name}"
        elif isinstance(node, ast.Call) and _last(node.func) in {"import_module", "__import__"}:
            first = node.args[0] if node.args else None
            # A computed name is shown as it stands, so that no rule is passed by it unseen.
            found.add(str(first.value) if isinstance(first, ast.Constant) else "<computed>")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            chain = _chain(node)
            if chain and chain[0] in aliases:
                found.add(".".join([aliases[chain[0]], *chain[1:]]))
    return found


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _chain(node: ast.expr) -> list[str]:
    """``a.b.c`` as a list; empty where it does not start at a plain name."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (inner := _chain(node.value)):
        return [*inner, node.attr]
    return []


def within(name: str, root: str) -> bool:
    return name == root or name.startswith(root + ".")


def part(path: str) -> str:
    """The module or subpackage right below the package: what stands on a floor."""
    return Path(path).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(index for index, members in enumerate(FLOORS) if name in members)


def violations(source: str, path: str) -> Iterator[str]:
    own = part(path)
    for name in sorted(names(source, path)):
        if name == "<computed>":
            yield f"{path} imports a computed name"
        if not within(name, "latentwire") or name == "latentwire":
            continue
        other = name.split(".")[1]
        known = any(other in members for members in FLOORS)
        if not known or floor(other) < floor(own) or frozenset({own, other}) in STRANGERS:
            yield f"{path} imports {name}"


@pytest.mark.parametrize("path", SOURCES)
def test_imports_point_down(path: str) -> None:
    if part(path) in EXEMPT:
        return
    if path == "__init__.py":
        # What the package offers by its own name is imported when it is asked for.
        first = "".join(
            ast.unparse(node) + "\n"
            for node in ast.parse(SOURCES[path]).body
            if isinstance(node, ast.Import | ast.ImportFrom)
        )
        found = {name for name in names(first, path) if within(name, "latentwire")}
        assert found <= {"latentwire.version.VERSION"}
        return
    assert any(part(path) in members for members in FLOORS), f"{path} stands on no floor"
    assert list(violations(SOURCES[path], path)) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("wire/x.py", "import latentwire.decoders.frozen"),
        ("wire/x.py", "from latentwire import decoders"),
        ("wire/x.py", "from ..decoders import frozen"),
        ("wire/__init__.py", "from ..decoders import frozen"),
        ("wire/x.py", "def f() -> None:\n    from latentwire.decoders import frozen"),
        ("wire/x.py", "import importlib\nimportlib.import_module('latentwire.train')"),
        ("wire/x.py", "import importlib\nimportlib.import_module(name)"),
        ("wire/x.py", "from latentwire import testing"),
        ("diagnostics/x.py", "from latentwire.checkpointing import commit"),
        ("checkpointing/x.py", "from latentwire.diagnostics import stream"),
    ],
)
def test_the_rule_sees_an_import_that_points_up(path: str, source: str) -> None:
    """The rule itself, on what it must refuse."""
    assert len(list(violations(source, path))) == 1


def test_the_rule_allows_what_points_down() -> None:
    source = "from latentwire import config_file\nfrom . import pooling\nimport latentwire.data.x"
    assert list(violations(source, "wire/x.py")) == []
    assert len(SOURCES) > 40, "the package is found"


@pytest.mark.parametrize("path", [path for path in SOURCES if part(path) in {"wire", "objectives"}])
def test_wire_and_objectives_know_nothing_of_ranks(path: str) -> None:
    used = names(SOURCES[path], path)
    ranks = ("torch.distributed", "latentwire.distributed", "deepspeed")
    assert not [name for name in used if any(within(name, root) for root in ranks)]


def test_topology_brings_no_torch() -> None:
    script = (
        "import sys, latentwire.distributed.topology;"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES)
def test_no_family_is_named(path: str) -> None:
    assert not re.findall(r"llama|qwen", path + SOURCES[path], re.IGNORECASE)


@pytest.mark.parametrize("path", SOURCES)
def test_nothing_is_unpickled(path: str) -> None:
    used = names(SOURCES[path], path)
    assert "torch.load" not in used
    assert not [name for name in used if name.split(".")[0] in UNSAFE]


def trusting(source: str) -> bool:
    """Whether remote code is switched on anywhere, as an argument, a key, or a default."""
    name = "trust_remote_code"
    for node in ast.walk(ast.parse(source)):
        pairs: list[tuple[object, ast.expr | None]] = []
        if isinstance(node, ast.keyword):
            pairs = [(node.arg, node.value)]
        elif isinstance(node, ast.Dict):
            keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
            pairs = list(zip(keys, node.values, strict=True))
        elif isinstance(node, ast.AnnAssign):
            pairs = [(_last(node.target), node.value)]
        elif isinstance(node, ast.Assign):
            pairs = [(_last(target), node.value) for target in node.targets]
        if any(k == name and isinstance(v, ast.Constant) and v.value is True for k, v in pairs):
            return True
    return False


@pytest.mark.parametrize("path", SOURCES)
def test_remote_code_is_never_trusted_unasked(path: str) -> None:
    assert not trusting(SOURCES[path])


def test_the_safety_rules_see_what_they_forbid() -> None:
    for source in ("f(trust_remote_code=True)", "x = {'trust_remote_code': True}"):
        assert trusting(source)
    assert trusting("class C:\n    trust_remote_code: bool = True")
    assert "torch.load" in names("import torch as t\nt.load('x')")
    assert "torch.load" in names("def f():\n    from torch import load")
    assert "torch.distributed" in names("import torch\ntorch.distributed.barrier()")
