"""Shapes of language models: all that a plan needs of them, without their weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from latentwire import strict_yaml
from latentwire.config import ConfigError
from latentwire.config_file import PACKAGED

SHIPPED = PACKAGED / "shapes.yaml"
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A causal language model of rotary attention with grouped queries, and gated MLPs."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    window: int
    """Longest sequence in tokens."""
    tied: bool
    """Whether the output layer shares the input embeddings."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False

    @property
    def query_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Of the keys of a position in a layer; that of its values is the same."""
        return self.num_kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) features of a layer's linear layers by the end of their names."""
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "self_attn.q_proj": (hidden, self.query_width),
            "self_attn.k_proj": (hidden, self.kv_width),
            "self_attn.v_proj": (hidden, self.kv_width),
            "self_attn.o_proj": (self.query_width, hidden),
            "mlp.gate_proj": (hidden, inner),
            "mlp.up_proj": (hidden, inner),
            "mlp.down_proj": (inner, hidden),
        }

    @property
    def layer_matrices(self) -> int:
        """Weights of a layer's linear layers, biases left out."""
        return sum(num_in * num_out for num_in, num_out in self.linears.values())

    @property
    def layer_vectors(self) -> int:
        """A layer's other parameters: norms and biases."""
        biases = self.qkv_bias * (self.query_width + 2 * self.kv_width)
        biases += self.out_bias * self.hidden_size
        biases += self.mlp_bias * (2 * self.intermediate_size + self.hidden_size)
        return 2 * self.hidden_size + biases

    @property
    def layer(self) -> int:
        """Parameters of a layer."""
        return self.layer_matrices + self.layer_vectors

    @property
    def embedding(self) -> int:
        """Parameters of the input embeddings."""
        return self.vocab_size * self.hidden_size

    @property
    def backbone(self) -> int:
        """Parameters without the output layer."""
        return self.embedding + self.num_layers * self.layer + self.hidden_size

    @property
    def num_parameters(self) -> int:
        return self.backbone + (0 if self.tied else self.embedding)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A model's shape and where it is from."""

    shape: ModelShape | None
    """None: nobody here knows it."""
    origin: str
    """For people: where it is from, or why there is none."""


def find(model: str, *, revision: str | None = None, ask_hub: bool = True) -> Found:
    """The shape of a local folder, of a shipped name, or of what the hub has.

    Args:
        ask_hub: whether the network may be used for a name that is not shipped.

    Raises:
        ConfigError: there is a configuration, but it is not one of such a model.
    """
    folder = Path(model)
    if (folder / "config.json").is_file():
        return Found(shape=_read(folder / "config.json", model), origin="its config.json")
    if model in _shipped()["models"]:
        entry = _shipped()["models"][model]
        return Found(shape=parse(entry, model), origin="shipped with the recipes")
    if folder.exists() or model.startswith((".", "/")):
        return Found(shape=None, origin=f"{model} holds no config.json")
    path, problem = _from_hub(model, revision, ask_hub=ask_hub)
    if path is None:
        return Found(shape=None, origin=problem)
    return Found(shape=_read(path, model), origin="the hub's config.json")


def entry(model: str) -> Mapping[str, Any] | None:
    """The keys of a model's config.json: of a local folder's, or of a shipped name; None of others.

    Raises:
        ConfigError: the folder's file cannot be read.
    """
    if (Path(model) / "config.json").is_file():
        return _tree(Path(model) / "config.json", model)
    found: Mapping[str, Any] | None = _shipped()["models"].get(model)
    return found


def parse(entry: Mapping[str, Any], model: str) -> ModelShape:
    """The shape that a model's ``config.json`` says.

    Raises:
        ConfigError: it lacks a size, or has experts.
    """
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    missing = [name for name in (*names, "vocab_size") if not isinstance(entry.get(name), int)]
    experts = [name for name in _EXPERTS if entry.get(name)]
    if missing or experts:
        why = f"no {', '.join(missing)}" if missing else f"{experts[0]}: {entry[experts[0]]}"
        raise ConfigError(
            [
                f"{model}: its configuration has {why}; plans know transformers with attention and "
                "one gated MLP a layer only; plan with a model of about its size in its place"
            ]
        )
    heads = entry["num_attention_heads"]
    family = _shipped()["families"].get(entry.get("model_type"), {})
    bias = bool(entry.get("attention_bias"))
    return ModelShape(
        hidden_size=entry["hidden_size"],
        intermediate_size=entry["intermediate_size"],
        num_layers=entry["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=entry.get("num_key_value_heads") or heads,
        head_dim=entry.get("head_dim") or entry["hidden_size"] // heads,
        vocab_size=entry["vocab_size"],
        window=entry.get("max_position_embeddings") or 1 << 30,
        tied=bool(entry.get("tie_word_embeddings", False)),
        qkv_bias=bias or bool(family.get("qkv_bias")),
        out_bias=bias,
        mlp_bias=bool(entry.get("mlp_bias")),
    )


def _read(path: Path, model: str) -> ModelShape:
    return parse(_tree(path, model), model)


def _tree(path: Path, model: str) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError([f"{model}: its config.json cannot be read: {error}"]) from None
    return tree if isinstance(tree, dict) else {}


@cache
def _shipped() -> dict[str, Any]:
    tree: dict[str, Any] = strict_yaml.load_file(SHIPPED)
    return tree


def _from_hub(model: str, revision: str | None, *, ask_hub: bool) -> tuple[Path | None, str]:
    """The path of a hub model's config.json, or why there is none."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    from latentwire.data.hub import hub_problem

    try:
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached), ""
        if not ask_hub:
            return None, f"{model} is neither local nor shipped with the recipes"
        if problem := hub_problem(f"the shape of {model}"):
            return None, problem
        return Path(hf_hub_download(model, "config.json", revision=revision)), ""
    # Gated, missing, renamed, malformed: the library has a class for each, and all say why.
    except Exception as error:
        return None, f"the hub did not give {model}'s config.json: {str(error).splitlines()[0]}"
