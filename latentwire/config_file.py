"""From YAML and ``key=value`` overrides to the typed configuration tree, strictly.

An unknown key, a wrong type or a bad value is a problem that names the key, the value and the
fix. All problems are collected before any is reported.
"""

import difflib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from latentwire import strict_yaml
from latentwire.config import Config, ConfigError, DecoderConfig, RunConfig, flatten
from latentwire.config_checks import problems

PACKAGED = Path(__file__).parent / "recipes"
REPOSITORY = Path(__file__).parent.parent

_UNIONS = (types.UnionType, typing.Union)
"""``str | None`` is the first, ``Literal[...] | None`` the second."""
_SHOWN = 80
"""Characters of a value that a message quotes."""


def recipe_names() -> list[str]:
    """Names of the packaged recipes: of those files that name decoders."""
    return packaged_names(lambda tree: "decoders" in tree)


def packaged_names(wanted: Callable[[Mapping[str, Any]], bool]) -> list[str]:
    """Names of the packaged YAML files whose content is ``wanted``."""
    trees = {path.stem: strict_yaml.load_file(path) for path in PACKAGED.glob("*.yaml")}
    return sorted(name for name, tree in trees.items() if wanted(tree))


def load(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a packaged recipe or a YAML file, with overrides applied.

    Raises:
        ConfigError: with every problem found.
    """
    return merged(_read(recipe), overrides)


def merged(tree: dict[str, Any], overrides: Sequence[str]) -> Config:
    """The configuration of a tree with overrides applied, which change the tree too.

    Raises:
        ConfigError: with every problem found.
    """
    errors: list[str] = []
    for text in overrides:
        _override(tree, text, errors)
    config = _build(Config, tree, "", errors)
    # What was reported stands at its default here, which must not count as a second problem of
    # the key or of the section around it.
    reported = [_key(problem) for problem in errors]
    for problem in problems(config):
        if not any(f"{key}.".startswith(f"{_key(problem)}.") for key in reported):
            errors.append(problem)
    if errors:
        raise ConfigError(errors)
    return config


def _key(problem: str) -> str:
    return problem.partition(":")[0]


def from_tree(tree: Mapping[str, Any]) -> Config:
    """The configuration of an already merged tree, as a run's ``config.yaml`` holds it."""
    errors: list[str] = []
    config = _build(Config, tree, "", errors)
    if errors:
        raise ConfigError(errors)
    return config


def to_tree(config: object) -> Any:
    """The tree as plain mappings and scalars, ready for YAML."""
    if is_dataclass(config):
        return {item.name: to_tree(getattr(config, item.name)) for item in fields(config)}
    if isinstance(config, Mapping):
        return {name: to_tree(value) for name, value in config.items()}
    return list(config) if isinstance(config, tuple) else config


def decoder_names(recipe: str, overrides: Sequence[str]) -> list[str]:
    """Names of the decoders of a configuration that need not be complete yet.

    Raises:
        ConfigError: the recipe cannot be read.
    """
    tree = _read(recipe)
    for text in overrides:
        _override(tree, text, [])
    decoders = tree.get("decoders")
    return list(map(str, decoders)) if isinstance(decoders, dict) else []


def guess_run_folder(recipe: str, overrides: Sequence[str]) -> Path | None:
    """The run folder a failing command meant, for its status; None if that is unclear."""
    try:
        tree = _read(recipe)
        for text in overrides:
            _override(tree, text, [])
        errors: list[str] = []
        run = _build(RunConfig, tree.get("run") or {}, "run", errors)
    except (ConfigError, AttributeError):
        return None
    if errors or not run.tag or "/" in run.tag or run.tag.startswith("."):
        return None
    return Path(run.root) / run.tag


def _read(recipe: str) -> dict[str, Any]:
    packaged = PACKAGED / f"{recipe}.yaml"
    path = packaged if recipe in recipe_names() else Path(recipe)
    if not path.is_file():
        raise ConfigError(
            [
                f"--recipe: '{recipe}' is neither a file nor a packaged recipe "
                f"({', '.join(recipe_names())})"
            ]
        )
    try:
        tree = strict_yaml.load_file(path)
    except yaml.YAMLError as error:
        raise ConfigError([f"--recipe: {path} is no valid YAML: {error}"]) from None
    if not isinstance(tree, dict):
        raise ConfigError([f"--recipe: {path} must hold a mapping of keys, e.g. 'run: {{tag: x}}'"])
    if path == packaged:
        _anchor_paths(tree)
    return tree


def read_mapping(path: Path, keys: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """A YAML file that may hold some ``keys``, and a problem for each other key it holds.

    Raises:
        ConfigError: it cannot be read, or holds no mapping.
    """
    try:
        tree = strict_yaml.load_file(path)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from None
    if not isinstance(tree, dict):
        raise ConfigError([f"{path}: must hold a mapping with the keys {', '.join(keys)}"])
    unknown = [key for key in tree if key not in keys]
    return tree, [f"{path}: unknown key '{key}'; there are {', '.join(keys)}" for key in unknown]


def _anchor_paths(tree: dict[str, Any]) -> None:
    """Paths in a packaged recipe are relative to the repository, wherever one stands."""
    models = [tree.get("encoder", {}), *tree.get("decoders", {}).values()]
    places = [*((entry, "model") for entry in models), (tree.get("sharding", {}), "ds_config")]
    for entry, key in places:
        if entry.get(key) and (REPOSITORY / entry[key]).exists():
            entry[key] = str(REPOSITORY / entry[key])


def _override(tree: dict[str, Any], text: str, errors: list[str]) -> None:
    key, equals, raw = text.partition("=")
    if not equals or not key:
        errors.append(f"'{text}': an override is written key=value, e.g. train.batch_size=24")
        return
    kind = _type_at(key)
    try:
        value = raw if kind is str else strict_yaml.load(raw)
    except yaml.YAMLError as error:
        shown = raw if len(raw) <= _SHOWN else f"{raw[:_SHOWN]}..."
        # What PyYAML itself says tells where in a file, and this is one value.
        why = f": {error}" if isinstance(error, strict_yaml.StrictYamlError) else ""
        errors.append(f"{key}: '{shown}' is no valid YAML value{why}")
        return
    if isinstance(value, str) or (_is_optional_str(kind) and value is not None):
        value = raw
    node = tree
    *path, last = key.split(".")
    for name in path:
        child = node.get(name)
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict):
            errors.append(f"{key}: '{name}' holds a value and has no keys below it")
            return
        node = child
    if path == ["decoders"] and value is None:
        if last not in node:
            known = ", ".join(node) or "none"
            errors.append(f"{key}: there is no decoder '{last}' to take out (there are: {known})")
        node.pop(last, None)
    else:
        node[last] = value


def _type_at(key: str) -> Any:
    """The declared type of a dotted key, or None where there is no such key."""
    kind: Any = Config
    parts = key.split(".")
    for index, name in enumerate(parts):
        if parts[:index] == ["decoders"]:
            kind = DecoderConfig
        elif is_dataclass(kind):
            kind = _hints(typing.cast(type, kind)).get(name)
        else:
            return None
    return kind


def _is_optional_str(kind: Any) -> bool:
    return typing.get_origin(kind) in _UNIONS and str in typing.get_args(kind)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _build(kind: Any, value: Any, key: str, errors: list[str]) -> Any:
    """``value`` as ``kind``; what does not fit is reported, and its field keeps its default."""
    if is_dataclass(kind):
        return _build_dataclass(typing.cast(type, kind), value, key, errors)
    origin = typing.get_origin(kind)
    if origin is Mapping:
        return value
    if origin in _UNIONS:
        if value is None:
            return None
        return _build(typing.get_args(kind)[0], value, key, errors)
    if origin is typing.Literal:
        options = typing.get_args(kind)
        if value in options:
            return value
        errors.append(f"{key}: '{value}' is not one of {', '.join(map(str, options))}")
        return None
    if origin is tuple:
        return _sequence(typing.get_args(kind)[0], value, key, errors)
    return _scalar(kind, value, key, errors)


def _sequence(kind: type, value: Any, key: str, errors: list[str]) -> tuple[Any, ...]:
    """A list as YAML writes it, ``a,b,c`` as an override may, or a single value."""
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",") if part.strip()]
        value = parts if kind is str else [_whole(part) for part in parts]
    if not isinstance(value, list | tuple):
        value = [value]
    return tuple(_scalar(kind, item, key, errors) for item in value)


def _whole(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _build_dataclass(kind: type, value: Any, key: str, errors: list[str]) -> Any:
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        errors.append(f"{key}: '{value}' should be a mapping of keys")
        return None
    hints = _hints(kind)
    for name in value:
        if name not in hints:
            errors.append(_unknown(f"{key}.{name}" if key else str(name)))
    given = {}
    for name, hint in hints.items():
        if name not in value:
            continue
        full = f"{key}.{name}" if key else name
        if full == "decoders":
            given[name] = _decoders(value[name], errors)
        else:
            num_errors = len(errors)
            built = _build(hint, value[name], full, errors)
            if len(errors) == num_errors or is_dataclass(built):
                given[name] = built
    return kind(**given)


def _decoders(value: Any, errors: list[str]) -> dict[str, DecoderConfig]:
    if not isinstance(value, Mapping):
        errors.append("decoders: should map a name to its settings, e.g. 'a: {model: ...}'")
        return {}
    built = {
        str(name): _build(DecoderConfig, entry, f"decoders.{name}", errors)
        for name, entry in value.items()
    }
    return {name: decoder for name, decoder in built.items() if decoder is not None}


def _scalar(kind: type, value: Any, key: str, errors: list[str]) -> Any:
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        # YAML reads 1e-4 as a string; the declared type says what was meant.
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    if kind is str and isinstance(value, str):
        return value
    if kind is str:
        # YAML has already read 1.10 as 1.1 and 0123 as 83; what was written is lost.
        errors.append(f"{key}: '{value}' should be a text; put it in quotes")
        return None
    names = {int: "a whole number", float: "a number", bool: "true or false"}
    errors.append(f"{key}: '{value}' should be {names[kind]}")
    return None


def _unknown(key: str) -> str:
    known = list(flatten(Config()))
    parent = key.split(".")
    if parent[0] == "decoders" and len(parent) > 2:
        stem = ".".join(parent[:2])
        known = [f"{stem}.{item.name}" for item in fields(DecoderConfig)]
    sections = {".".join(name.split(".")[:depth]) for name in known for depth in (1, 2, 3)}
    close = difflib.get_close_matches(key, [*known, *sections], n=1, cutoff=0.6)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"{key}: unknown key{hint}"
