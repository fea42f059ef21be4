"""A trained wire apart from any run, opened from a folder or the hub, ready to read texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from latentwire import config_file
from latentwire.config import Config, ConfigError
from latentwire.data.encoder_texts import EncoderTokenizer, WireText
from latentwire.data.hub import hub_problem, names_folder
from latentwire.wire.backbones import encoder_window
from latentwire.wire.export_files import (
    CONFIG,
    ENCODER,
    WEIGHTS,
    copy_encoder_files,
    export_config,
    own_code,
    read_description,
    read_weights,
    shape_from,
    without_trust,
    write_export,
)
from latentwire.wire.unit import Injection
from latentwire.wire.wire import Wire, build_wire


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Wires of some texts."""

    vectors: Tensor
    """[texts, private + latents, d_z], the private ones of every decoder"""
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
        shapes = {n: shape_from(d["shape"]) for n, d in description["decoders"].items()}
        try:
            window = encoder_window(self.config.encoder)
            self.tokenizer = EncoderTokenizer(self.config, window=window)
            self.wire: Wire = build_wire(
                self.config,
                shapes,
                num_lead=len(self.tokenizer.lead),
                device=torch.device("cpu"),
                model=encoder_model(description, self.config),
            )
        except ConfigError:
            raise
        except (OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
            why = (str(error).splitlines() or [repr(error)])[0]
            raise ConfigError([f"{folder}: its wire cannot be built: {why}"]) from error
        self.trained = frozenset(n for n, p in self.wire.named_parameters() if p.requires_grad)
        """Names of the parameters that an export holds, whoever freezes them later."""

    @property
    def decoders(self) -> dict[str, str]:
        """The frozen decoders that can read it, by name, with their folder or hub id."""
        return {name: d["model"] for name, d in self.description["decoders"].items()}

    def check_ratio(self, ratio: int | None) -> None:
        """Refuses a ratio that this wire cannot have.

        Raises:
            ValueError: the wire's length is fixed, or the ratio is no positive whole number.
        """
        if ratio is not None and (not isinstance(ratio, int) or isinstance(ratio, bool)):
            raise ValueError(f"ratio {ratio!r}: it is no whole number")
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
            ValueError: as ``check_ratio``, or ``texts`` is one text, or holds what is none.
        """
        self.check_ratio(ratio)
        check_texts(texts)
        if not texts:
            return Latents(
                vectors=torch.zeros(0, 0, self.config.wire.d_z, device=self._device),
                counts=torch.zeros(0, dtype=torch.long, device=self._device),
            )
        wires = [WireText(text=text, ratio=ratio) for text in texts]
        longest = max(1, *(self.tokenizer.num_latents(text, ratio) for text in texts))
        batch = self.tokenizer.batch(wires, rows=len(wires), max_latents=longest)
        batch = batch.to(self._device)
        return Latents(vectors=self.wire.encode(batch), counts=batch.counts)

    @torch.no_grad()
    def inject(self, decoder: str, latents: Latents) -> Injection:
        """What one decoder reads for some wires.

        Its ``vectors`` stand where the text's embeddings would; the first ``num_positions`` of a
        row are the wire, the rest is padding. They are all there is without a deep prefix and
        LoRA. ``added`` is for the keys and values of those positions, before rotation, and
        ``WireReader`` is what puts it there.

        Raises:
            ValueError: the wire was not trained for that decoder.
        """
        if decoder not in self.decoders:
            raise ValueError(f"no decoder '{decoder}'; there are {', '.join(self.decoders)}")
        return self.wire.inject(decoder, latents.vectors, latents.counts)

    def num_positions(self, text: str, *, ratio: int | None = None) -> int:
        """Positions that a decoder reads for the wire of a text, begin and end included."""
        self.check_ratio(ratio)
        return self.tokenizer.num_positions(text, ratio)

    @property
    def _device(self) -> torch.device:
        return next(self.wire.parameters()).device

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = {
            name: p.detach().cpu().contiguous()
            for name, p in self.wire.named_parameters()
            if name in self.trained
        }
        write_export(save_directory, self.description, weights)
        settings = self.description["config"]["encoder"]
        source, target = self._folder / ENCODER, save_directory / ENCODER
        copy_encoder_files(source, target, settings, is_received=True)

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
        ConfigError: there is no such folder, and it cannot be had from the hub; it is no export,
            or is damaged, naming the file; or its encoder needs code of its own, which is not
            trusted.
    """
    folder = Path(path).expanduser()
    trust = trust_remote_code
    if not folder.is_dir():
        return _from_hub(str(path), trust_remote_code=trust, revision=revision).to(device)
    exported = ExportedWire(read_description(folder), folder, trust_remote_code=trust)
    wanted = {n: p for n, p in exported.wire.named_parameters() if n in exported.trained}
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


def _from_hub(name: str, *, trust_remote_code: bool, revision: str | None) -> ExportedWire:
    if names_folder(name):
        raise ConfigError([f"{name}: there is no such folder"])
    what = f"'{name}', which is no folder here"
    try:
        snapshot_download(name, revision=revision, local_files_only=True)
    except (OSError, ValueError):
        if problem := hub_problem(what):
            raise ConfigError([problem]) from None
    try:
        return ExportedWire.from_pretrained(
            name, trust_remote_code=trust_remote_code, revision=revision
        )
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        why = (str(error).splitlines() or [repr(error)])[0]
        raise ConfigError([f"{what}, cannot be had from the hub: {why}"]) from None


def check_texts(texts: Sequence[str], what: str = "texts") -> None:
    """Refuses what no tokenizer should see.

    Raises:
        ValueError: one string for a list of them, or an entry that is no text.
    """
    if isinstance(texts, str):
        raise ValueError(f"{what}: one string was given for a list of them; give [string]")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{what}: number {number} is no text: {text!r}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{what}: number {number} is no valid Unicode: {error}") from None


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
