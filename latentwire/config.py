"""The configuration tree: one frozen dataclass a concern, its meaning under each field.

``config_file`` turns YAML and ``key=value`` overrides into this tree. Checks that need nothing but
the configuration itself are here; those that need files, models or ranks are in
``training/preflight.py``. Both report every problem at once.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


class ConfigError(ValueError):
    """One or more problems with what the user asked for; ``problems`` lists them all."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    tag: str = "default"
    """Name of the run; its folder is ``<root>/<tag>``."""
    seed: int = 0
    """Seed of initialisation, sample order and evaluation."""
    root: str = "runs"
    """Where run folders go."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    root: str = "checkpoints"
    """Where checkpoints go, as ``<root>/<tag>/stageA/step-00000100``."""
    interval: int = 0
    """Steps between checkpoints; 0 saves at stage ends only."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    source: str = "profiles"
    """``profiles`` (generated), ``squad`` or ``jsonl``."""
    path: str | None = None
    """A local file, or for ``squad`` a hub data set; None is the source's own default."""
    samples: int = 0
    """Training examples used; 0 is all of them."""
    questions_per_context: int = 6
    """Questions on one context that stay together in a batch; the context is encoded once."""
    template: str = "Context: {context}\nQuestion: {question}"
    """The user text of a prompt."""
    max_answer_tokens: int = 16
    """Answers are cut to this many tokens of a decoder, in training and in generation."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    rank: int = 0
    """Rank of the LoRA update of the encoder; 0 trains all of its weights."""
    alpha: float = 32.0
    """Scale of the update, divided by the rank."""
    targets: str = "all-linear"
    """Module names for peft, comma separated, or ``all-linear``."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    model: str = ""
    """Folder or hub id of the causal LM whose copy becomes the encoder."""
    revision: str | None = None
    """Hub revision."""
    attention: Literal["bidirectional", "causal"] = "bidirectional"
    """Who sees whom among the context's tokens."""
    max_tokens: int = 0
    """Longest text in encoder tokens; 0 is the model's own window. The rest is cut and counted."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    activation_checkpointing: bool = False
    """Recompute the encoder's layers in backward instead of keeping their activations."""
    trust_remote_code: bool = False
    """Allow the model's repository to run its own code."""


@dataclass(frozen=True, kw_only=True)
class WireConfig:
    pooling: Literal["mean"] = "mean"
    """How token states become latents: means of contiguous spans."""
    ratio: int = 4
    """Encoder tokens per latent; the wire's length follows the text."""
    num_latents: int = 0
    """A fixed number of latents per text instead of a ratio; 0 uses the ratio."""
    d_z: int = 128
    """Width of a latent."""
    carries: Literal["context", "prompt"] = "context"
    """What the wire replaces: the context (the question stays text) or the whole prompt."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    hidden_mult: float = 2.0
    """Width of the adapter's hidden layer, as a multiple of the decoder's hidden size."""
    init_scale: float = 1.0
    """First size of a soft-prompt vector over the RMS of the decoder's input embeddings; trained
    from there. States after a layer are many times larger than embeddings."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    model: str = ""
    """Folder or hub id of the frozen causal LM."""
    revision: str | None = None
    """Hub revision."""
    ranks: int | None = None
    """How many ranks hold this decoder; None shares out what is left."""
    share: float = 1.0
    """Its part of the ranks beside the other decoders that name no ``ranks``."""
    weight: float = 1.0
    """Weight of this decoder's loss."""
    chat: bool = False
    """Wrap prompts in the tokenizer's chat template."""
    quantization: Literal["none", "nf4"] = "none"
    """``nf4`` loads the frozen weights in 4 bits (needs bitsandbytes)."""
    trust_remote_code: bool = False
    """Allow the model's repository to run its own code."""


@dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    tf: float = 1.0
    """Weight of the teacher-forced cross-entropy over the answer."""
    first: float = 0.0
    """Weight of the cross-entropy of the answer's first token."""
    kce: float = 0.0
    """Weight of the cross-entropy over the first ``k`` answer tokens."""
    k: int = 4
    """How many answer tokens ``kce`` covers."""
    kd: float = 1.0
    """Weight of KL(text teacher || latent student) over the answer positions."""
    span: float = 1.0
    """Weight of the distance between each soft-prompt vector and the mean of the decoder's own
    states of the text it stands for; needs tokenizers that know their offsets."""
    span_layer: int = 0
    """Which states: 0 for the input embeddings, n for those after the decoder's n-th layer."""
    kd_temperature: float = 1.0
    """Temperature of both distributions in ``kd``; the loss is scaled by its square."""

    @property
    def weights(self) -> dict[str, float]:
        return {
            "tf": self.tf,
            "first": self.first,
            "kce": self.kce,
            "kd": self.kd,
            "span": self.span,
        }


@dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    backend: Literal["fsdp", "deepspeed"] = "fsdp"
    """What shards the trained weights and their optimizer state."""
    ds_config: str | None = None
    """DeepSpeed's JSON file, with settings of ZeRO, offload and communication only; read with
    ``backend: deepspeed``."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    encoder_lr: float = 2e-4
    """Peak learning rate of the encoder."""
    adapter_lr: float = 1e-3
    """Peak learning rate of the adapters and of the encoder's projection."""
    weight_decay: float = 0.01
    """AdamW weight decay of matrices; vectors have none."""
    beta1: float = 0.9
    """AdamW first-moment decay."""
    beta2: float = 0.98
    """AdamW second-moment decay."""
    min_lr: float = 0.05
    """Where the cosine ends, as a fraction of the peak."""
    max_grad_norm: float = 1.0
    """Clip the global gradient norm, over all units and groups, to this; 0 does not clip."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    steps: int | None = None
    """Optimizer steps; 0 skips the stage. Give ``steps`` or ``epochs``."""
    epochs: float | None = None
    """Passes over the training examples, in place of ``steps``."""
    lr_scale: float = 1.0
    """Multiplies both peak learning rates in this stage."""
    warmup_steps: int = 20
    """Steps of linear warm-up of the learning rates."""
    encoder_start: int = 0
    """The encoder stays frozen for this many steps while the adapters warm up."""
    span_start: float = 1.0
    """Factor of ``objectives.span`` at the stage's start; it changes geometrically."""
    span_end: float = 1.0
    """The same at the stage's end."""
    mixed: float = 0.0
    """Share of steps, at the stage's start, in which part of each context stays text (``mode:
    mixed``); it falls linearly to 0 at the stage's end."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    batch_size: int = 48
    """Examples per optimizer step, over all ranks."""
    accumulation: int = 1
    """Equal micro-batches that an optimizer step is split into."""
    max_skipped: int = 10
    """Steps in a row that may be skipped because a loss or gradient is not finite; one more ends
    the run."""
    stage_a: StageConfig = field(default_factory=lambda: StageConfig(steps=0))
    """Latent fit: adapters first, then the encoder; part of the context may stay text."""
    stage_b: StageConfig = field(default_factory=lambda: StageConfig(steps=0))
    """Latent only, longer."""

    def stage(self, name: str) -> StageConfig:
        return {"A": self.stage_a, "B": self.stage_b}[name]


@dataclass(frozen=True, kw_only=True)
class DiagnosticsConfig:
    log_interval: int = 10
    """Steps between rows of ``diagnostics.jsonl``; a stage's last step always has one."""
    grad_diag_interval: int = 50
    """Steps between rows with every objective's gradient norm, whatever its weight; 0 never."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    samples: int = 600
    """Evaluation examples; 0 is the whole split."""
    batch_size: int = 48
    """Examples per batch, over all ranks of a group."""
    max_new_tokens: int = 16
    """Longest generated answer."""
    split: Literal["validation", "test"] = "test"
    """Which held-out split is evaluated."""


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    timeout: float = 600.0
    """Seconds after which a collective that a rank never joined ends the job."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run is. ``decoders`` maps a name to its decoder."""

    run: RunConfig = field(default_factory=RunConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    data: DataConfig = field(default_factory=DataConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    decoders: Mapping[str, DecoderConfig] = field(default_factory=dict)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    placement: Literal["separate", "colocated", "auto"] = "auto"
    """``separate``: disjoint groups, a rank has one decoder. ``colocated``: every rank has all.
    ``auto``: separate when there is at least one rank per decoder."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """``bf16`` keeps fp32 master weights and optimizer state."""
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)


_POSITIVE = (
    "data.questions_per_context data.max_answer_tokens wire.ratio wire.d_z adapter.hidden_mult "
    "adapter.init_scale objectives.k objectives.kd_temperature optim.encoder_lr "
    "optim.adapter_lr train.batch_size train.accumulation diagnostics.log_interval "
    "eval.batch_size eval.max_new_tokens distributed.timeout encoder.lora.alpha "
    "train.stage_a.lr_scale train.stage_b.lr_scale "
    "train.stage_a.span_start train.stage_a.span_end train.stage_b.span_start "
    "train.stage_b.span_end"
).split()
_NOT_NEGATIVE = (
    "run.seed checkpoint.interval data.samples wire.num_latents encoder.max_tokens "
    "encoder.lora.rank objectives.tf objectives.first objectives.kce objectives.kd objectives.span "
    "objectives.span_layer optim.weight_decay optim.max_grad_norm "
    "diagnostics.grad_diag_interval eval.samples train.max_skipped "
    "train.stage_a.warmup_steps train.stage_b.warmup_steps train.stage_a.encoder_start "
    "train.stage_b.encoder_start"
).split()
_BELOW_ONE = "optim.beta1 optim.beta2".split()
_FRACTION = "optim.min_lr train.stage_a.mixed train.stage_b.mixed".split()


def flatten(config: object, prefix: str = "") -> dict[str, Any]:
    """The tree as ``{"dotted.key": value}``, leaves only."""
    return dict(_leaves(config, prefix))


def _leaves(value: object, key: str) -> Iterator[tuple[str, Any]]:
    if is_dataclass(value):
        for item in fields(value):
            yield from _leaves(
                getattr(value, item.name), f"{key}.{item.name}" if key else item.name
            )
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}")
    else:
        yield key, value


def problems(config: Config) -> list[str]:
    """Every problem of a well-typed configuration that shows without files, models or ranks."""
    flat = flatten(config)
    found = [
        f"{key}: {value} is no finite number"
        for key, value in flat.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    if found:
        return found
    found += [f"{key}: {flat[key]} must be above 0" for key in _POSITIVE if not flat[key] > 0]
    found += [f"{key}: {flat[key]} must be below 1" for key in _BELOW_ONE if not 0 <= flat[key] < 1]
    found += [f"{key}: {flat[key]} must be 0 or more" for key in _NOT_NEGATIVE if flat[key] < 0]
    found += [
        f"{key}: {flat[key]} must lie between 0 and 1"
        for key in _FRACTION
        if not 0 <= flat[key] <= 1
    ]
    if not _TAG.fullmatch(config.run.tag):
        found.append(
            f"run.tag: '{config.run.tag}' names a folder: use letters, digits, '.', '_' and '-', "
            "starting with a letter or digit"
        )
    if not config.encoder.model:
        found.append("encoder.model: missing; give a folder or a hub id of a causal LM")
    found += _decoder_problems(config)
    for slot in ("{context}", "{question}"):
        if config.data.template.count(slot) != 1:
            found.append(
                f"data.template: needs {slot} exactly once, "
                f"has it {config.data.template.count(slot)} times"
            )
    for key, stage in (
        ("train.stage_a", config.train.stage_a),
        ("train.stage_b", config.train.stage_b),
    ):
        if (stage.steps is None) == (stage.epochs is None):
            found.append(f"{key}: give either steps or epochs (set the other to null)")
        for name, number in (("steps", stage.steps), ("epochs", stage.epochs)):
            if number is not None and number < 0:
                found.append(f"{key}.{name}: {number} must be 0 or more")
    if config.train.batch_size > 0 and config.train.accumulation > 0:
        size, parts = config.train.batch_size, config.train.accumulation
        below, above = size // parts * parts, (size // parts + 1) * parts
        if size % parts:
            nearest = f"{below} or {above}" if below else str(above)
            found.append(
                f"train.batch_size: {size} is not a multiple of train.accumulation {parts}; "
                f"use {nearest}"
            )
    if not any(weight > 0 for weight in config.objectives.weights.values()):
        found.append("objectives: every weight is 0, so nothing would be trained")
    if config.sharding.backend == "deepspeed" and config.sharding.ds_config is None:
        found.append("sharding.ds_config: missing; give a file, e.g. ds_configs/zero2.json")
    return found


def _decoder_problems(config: Config) -> list[str]:
    found = []
    if not config.decoders:
        found.append("decoders: none given; name at least one, as decoders.<name>.model")
    for name, decoder in config.decoders.items():
        key = f"decoders.{name}"
        if not _NAME.fullmatch(name):
            found.append(f"{key}: a decoder's name is lower-case letters, digits and '_'")
        if not decoder.model:
            found.append(f"{key}.model: missing; give a folder or a hub id of a causal LM")
        if decoder.ranks is not None and decoder.ranks < 1:
            found.append(f"{key}.ranks: {decoder.ranks} must be 1 or more, or null")
        if decoder.share <= 0 or decoder.weight <= 0:
            found.append(f"{key}: share and weight must be above 0")
    return found
