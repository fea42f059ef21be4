"""A trained wire as a folder of its own: ``config.json``, ``model.safetensors``, and ``encoder/``.

``encoder/`` holds the configuration and the tokenizer of the encoder's language model, no weights.
Nothing of the decoders is here but their names and the few numbers a wire must know of them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from latentwire import config_file
from latentwire.config import Config, ConfigError
from latentwire.data.encoder_texts import EncoderTokenizer, WireText
from latentwire.wire.backbones import encoder_window
from latentwire.wire.deep_prefix import CacheShape
from latentwire.wire.unit import DecoderShape, Injection
from latentwire.wire.wire import Wire, build_wire

FORMAT = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ENCODER = "encoder"
CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Wires of some texts."""

    vectors: Tensor
    """[texts, private + latents, d_z]"""
    counts: Tensor
    """[texts] shared latents of each; what lies beyond is padding."""


class ExportedWire(nn.Module, ModelHubMixin):  # type: ignore[misc]
    """A wire that reads texts, apart from any run; ``save_pretrained``, ``push_to_hub``.

    Args:
        description: what ``config.json`` holds.
        folder: where its ``encoder/`` is.
        trust_remote_code: code that comes with its models may run.

    Raises:
        ConfigError: its encoder needs code of its own, which is not trusted.
    """

    def __init__(
        self, description: Mapping[str, Any], folder: Path, *, trust_remote_code: bool = False
    ) -> None:
        super().__init__()
        self.description = dict(description)
        self._folder = folder
        config = export_config(description, folder)
        if config.encoder.trust_remote_code and not trust_remote_code:
            raise ConfigError([own_code(config_file.from_tree(description["config"]), str(folder))])
        self.config = config if trust_remote_code else without_trust(config)
        self.tokenizer = EncoderTokenizer(self.config, window=encoder_window(self.config.encoder))
        shapes = {n: shape_from(d["shape"]) for n, d in description["decoders"].items()}
        self.wire: Wire = build_wire(
            self.config,
            shapes,
            num_lead=len(self.tokenizer.lead),
            device=torch.device("cpu"),
            model=encoder_model(description, self.config),
        )

    @property
    def decoders(self) -> dict[str, str]:
        """The frozen decoders that can read it, by name, with their folder or hub id."""
        return {name: d["model"] for name, d in self.description["decoders"].items()}

    def check_ratio(self, ratio: int | None) -> None:
        """Refuses a ratio that this wire cannot have.

        Raises:
            ValueError: the wire's length is fixed, or the ratio is not positive.
        """
        if ratio is not None and self.config.wire.num_latents:
            fixed = self.config.wire.num_latents
            raise ValueError(f"ratio {ratio}: this wire always has {fixed} latents; give none")
        if ratio is not None and ratio < 1:
            raise ValueError(f"ratio {ratio}: a latent stands for 1 encoder token or more")

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, ratio: int | None = None) -> Latents:
        """Texts to wires.

        Args:
            ratio: encoder tokens per latent at most; None is the configuration's own.

        Raises:
            ValueError: as ``check_ratio``.
        """
        self.check_ratio(ratio)
        wires = [WireText(text=text, ratio=ratio) for text in texts]
        longest = max([1, *(self.tokenizer.num_latents(text, ratio) for text in texts)])
        batch = self.tokenizer.batch(wires, rows=len(wires), max_latents=longest)
        device = next(self.wire.parameters()).device
        batch = batch.to(device)
        return Latents(vectors=self.wire.encode(batch), counts=batch.counts)

    @torch.no_grad()
    def inject(self, decoder: str, latents: Latents) -> Injection:
        """What one decoder reads for some wires.

        Raises:
            ValueError: the wire was not trained for that decoder.
        """
        if decoder not in self.decoders:
            raise ValueError(f"no decoder '{decoder}'; there are {', '.join(self.decoders)}")
        return self.wire.inject(decoder, latents.vectors, latents.counts)

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = {
            name: p.detach().cpu().contiguous()
            for name, p in self.wire.named_parameters()
            if p.requires_grad
        }
        write_export(save_directory, self.description, weights, encoder=self._folder / ENCODER)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> "ExportedWire":
        """As ``load_wire``, with the hub library's further options."""
        # Always handed on: the mixin takes from the export's own file what is not given.
        found: ExportedWire = super().from_pretrained(
            pretrained_model_name_or_path, trust_remote_code=trust_remote_code, **options
        )
        return found

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "ExportedWire":
        keep = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        chosen = {key: options[key] for key in keep if options.get(key) is not None}
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(snapshot_download(model_id, **chosen))
        return load_wire(folder, trust_remote_code=bool(options.get("trust_remote_code")))


def load_wire(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> ExportedWire:
    """Opens what ``latentwire checkpoint export`` wrote, ready to read texts, in fp32.

    Args:
        path: the folder, or a hub id.
        revision: of the hub id.
        trust_remote_code: code that comes with its encoder, and with its decoders, may run. What
            the export says of that is its author's word, and does not count.

    Raises:
        ConfigError: the folder is no export, or is damaged, naming the file; or its encoder needs
            code of its own, which is not trusted.
    """
    folder = Path(path)
    trust = trust_remote_code
    if not folder.is_dir():
        found = ExportedWire.from_pretrained(str(path), trust_remote_code=trust, revision=revision)
        return found.to(device)
    exported = ExportedWire(read_description(folder), folder, trust_remote_code=trust)
    wanted = {n: p for n, p in exported.wire.named_parameters() if p.requires_grad}
    weights = read_weights(folder)
    different = sorted(wanted.keys() ^ weights.keys())
    different += [n for n in wanted.keys() & weights.keys() if wanted[n].shape != weights[n].shape]
    if different:
        raise ConfigError(
            [f"{folder / WEIGHTS} does not fit {folder / CONFIG}: {', '.join(different[:3])}"]
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(weights[name])
    return exported.eval().to(device)


def read_description(folder: Path) -> dict[str, Any]:
    """What an export's ``config.json`` holds.

    Raises:
        ConfigError: it is missing, damaged, of another format, or says two things of one decoder.
    """
    path = folder / CONFIG
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        number = found["latentwire_format"]
        # What is shown, and what would be loaded.
        named = {name: decoder["model"] for name, decoder in found["decoders"].items()}
        loaded = {n: d["model"] for n, d in found["config"]["decoders"].items() if d is not None}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError([f"{path} is no exported wire: {error!r}"]) from None
    if number != FORMAT:
        raise ConfigError(
            [f"{path} has format {number!r}, not {FORMAT}; use the version that wrote it"]
        )
    if named != loaded:
        raise ConfigError([f"{path}: `decoders` names {named}, and `config` {loaded}"])
    return found


def read_config(folder: Path) -> Config:
    """The configuration that an export was trained with, as its author left it.

    Raises:
        ConfigError: the folder is no export.
    """
    return config_file.from_tree(read_description(folder)["config"])


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The trained tensors of an export, by their names in the wire.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError([f"{path} cannot be read: {error}"]) from None


def write_export(
    folder: Path, description: Mapping[str, Any], weights: Mapping[str, Tensor], *, encoder: Path
) -> None:
    """Writes an export into an existing folder.

    Args:
        encoder: holds the files for ``encoder/``; may be missing where the encoder reads bytes.
    """
    text = json.dumps(description, indent=2, allow_nan=False) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    save_file(dict(weights), folder / WEIGHTS, metadata={"format": "pt"})
    for path in sorted(encoder.iterdir()) if encoder.is_dir() else ():
        (folder / ENCODER).mkdir(exist_ok=True)
        (folder / ENCODER / path.name).write_bytes(path.read_bytes())
    (folder / CARD).write_text(_card(description), encoding="utf-8")


def export_config(description: Mapping[str, Any], folder: Path) -> Config:
    """The configuration of an exported wire, with its encoder's files in ``folder``."""
    config = config_file.from_tree(description["config"])
    if not (folder / ENCODER).is_dir():
        return config
    model = replace(config.encoder, model=str(folder / ENCODER), revision=None)
    return replace(config, encoder=model)


def own_code(config: Config, where: str, *, flag: str = "trust_remote_code=True") -> str:
    """What to say where models of an export would run code of their own, and may not.

    Args:
        flag: what lets it run.
    """
    models = {"encoder": config.encoder} | {
        f"decoder '{name}'": decoder for name, decoder in config.decoders.items()
    }
    brought = ", ".join(
        f"{what} ({settings.model}, revision {settings.revision or 'main'})"
        for what, settings in models.items()
        if settings.trust_remote_code
    )
    return (
        f"{where}: code of their own is brought by {brought}; read it (what an export holds is in "
        f"its encoder/), and give {flag} if you trust it"
    )


def without_trust(config: Config) -> Config:
    """The configuration with no model's own code trusted."""
    decoders = {n: replace(d, trust_remote_code=False) for n, d in config.decoders.items()}
    encoder = replace(config.encoder, trust_remote_code=False)
    return replace(config, encoder=encoder, decoders=decoders)


def encoder_model(description: Mapping[str, Any], config: Config) -> Any:
    """The encoder's language model: its shape alone where the export holds all its weights.

    Raises:
        ConfigError: what it does not hold cannot be loaded from where the configuration says.
    """
    encoder = config.encoder
    if encoder.kind == "byte":
        return None
    code = {"trust_remote_code": encoder.trust_remote_code}
    if encoder.kind == "lm" and not encoder.lora.rank:
        shape = AutoConfig.from_pretrained(encoder.model, **code)
        return AutoModel.from_config(shape, attn_implementation="sdpa", dtype=torch.float32, **code)
    base = description["config"]["encoder"]
    try:
        return AutoModel.from_pretrained(
            base["model"],
            revision=base.get("revision"),
            attn_implementation="sdpa",
            dtype=torch.float32,
            use_safetensors=True,
            **code,
        )
    except (OSError, ValueError) as error:
        problem = f"encoder.model: '{base['model']}' cannot be loaded: {str(error).splitlines()[0]}"
        raise ConfigError([problem]) from None


def shape_tree(shape: DecoderShape) -> dict[str, Any]:
    """A decoder's shape as JSON holds it; its mean embedding is only where a filler starts."""
    tree = asdict(replace(shape, mean_embedding=torch.zeros(())))
    tree.pop("mean_embedding")
    return {**tree, "linears": {name: list(pair) for name, pair in shape.linears.items()}}


def shape_from(tree: Mapping[str, Any]) -> DecoderShape:
    """Out of what ``shape_tree`` made."""
    cache = tree["cache"]
    if cache is not None:
        tuples = {key: tuple(cache[key]) for key in ("key_rms", "value_rms")}
        cache = CacheShape(**{**cache, **tuples})
    return DecoderShape(
        hidden_size=tree["hidden_size"],
        embedding_rms=tree["embedding_rms"],
        mean_embedding=torch.ones(tree["hidden_size"]),
        cache=cache,
        linears={name: (pair[0], pair[1]) for name, pair in tree["linears"].items()},
    )


def _card(description: Mapping[str, Any]) -> str:
    readers = "".join(
        f"- `{name}`: {decoder['model']}\n" for name, decoder in description["decoders"].items()
    )
    place = description.get("place") or {}
    first = next(iter(description["decoders"]))
    return (
        "---\nlibrary_name: latentwire\n---\n# A LatentWire wire\n\n"
        "Latent vectors of a text that these frozen models read in its place "
        f"(stage {place.get('stage')}, step {place.get('step')}):\n\n{readers}\n"
        '```python\nimport latentwire\n\nwire = latentwire.load_wire("<this folder or id>")\n'
        'latents = wire.encode(["A text."])\n\n'
        f'reader = latentwire.load_reader("<this folder or id>", "{first}")\n'
        'reader.answer(["A question?"], ["A text."])\n```\n'
    )
