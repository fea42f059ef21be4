"""The configuration tree: one frozen dataclass a concern, its meaning under each field.

``config_file`` turns YAML and ``key=value`` overrides into this tree and ``config_checks`` checks
what needs nothing but the tree; checks that need files, models or ranks are in
``training/preflight.py``. Both report every problem at once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

OBJECTIVES = (
    "tf first kce kd state span latent_align manifold scale_l2 gist ae continuation"
).split()
"""Names of all objectives, in the order of tables."""
GIST_HEADS = 4
"""Attention heads of a gist head."""


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
    """``profiles`` (generated), ``squad``, ``hotpot`` or ``jsonl``."""
    path: str | None = None
    """A local file, or for ``squad`` and ``hotpot`` a hub data set; None is the source's own
    default."""
    setting: Literal["distractor", "gold"] = "distractor"
    """Contexts of ``hotpot``: all ten paragraphs, or the two that hold the answer's support."""
    samples: int = 0
    """Training examples used; 0 is all of them."""
    questions_per_context: int = 6
    """Questions on one context that stay together in a batch; the context is encoded once."""
    template: str = "Context: {context}\nQuestion: {question}"
    """The user text of a prompt."""
    anchor: str = "\nAnswer:"
    """The text right before an answer, at the end of every prompt; no white space at its end,
    which belongs to the answer's first token."""
    max_answer_tokens: int = 16
    """Answers are cut to this many tokens of a decoder, in training and in generation."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    rank: int = 0
    """Rank of the LoRA update. 0: of the encoder all weights are trained, of a decoder none."""
    alpha: float = 32.0
    """Scale of the update, divided by the rank."""
    targets: str = "all-linear"
    """Ends of module names, comma separated, or ``all-linear``: every linear layer of the
    transformer."""


@dataclass(frozen=True, kw_only=True)
class ByteConfig:
    width: int = 192
    """Hidden size of the ``byte`` encoder, trained from scratch on UTF-8 bytes."""
    layers: int = 3
    """Its transformer layers."""
    heads: int = 6
    """Its attention heads; they divide its width."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    kind: Literal["lm", "stq", "byte"] = "lm"
    """``lm``: a trained copy of a language model. ``stq``: the states of a frozen one, read by
    trained layers only. ``byte``: a transformer over UTF-8 bytes, from scratch."""
    model: str = ""
    """Folder or hub id of the causal LM that ``lm`` trains a copy of, or that ``stq`` reads."""
    layers: tuple[int, ...] = ()
    """Layers whose states ``stq`` reads: 0 the input embeddings, n after the n-th; none given
    reads all of them."""
    byte: ByteConfig = field(default_factory=ByteConfig)
    revision: str | None = None
    """Hub revision."""
    attention: Literal["bidirectional", "causal"] = "bidirectional"
    """Who sees whom among the context's tokens; a frozen model (``stq``) always looks back only."""
    max_tokens: int = 0
    """Longest text in encoder tokens (bytes for ``byte``); 0 is the model's own window, or 4,096
    bytes. The rest is cut and counted."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    activation_checkpointing: bool = False
    """Recompute the encoder's layers in backward instead of keeping their activations."""
    trust_remote_code: bool = False
    """Allow the model's repository to run its own code."""


@dataclass(frozen=True, kw_only=True)
class RefinerConfig:
    layers: int = 0
    """Transformer layers over a wire's latents, before any decoder sees them; 0 has none."""
    heads: int = 4
    """Their attention heads; they divide ``wire.d_z``."""


@dataclass(frozen=True, kw_only=True)
class WireConfig:
    pooling: Literal["mean", "block", "queries"] = "mean"
    """How token states become latents. ``mean``: means of contiguous spans. ``block``: a learned
    query attends within each span. ``queries``: ``num_latents`` learned queries attend to the
    whole text, each starting out near its own part of it."""
    ratio: int = 4
    """Encoder tokens per latent; the wire's length follows the text."""
    num_latents: int = 0
    """A fixed number of latents per text instead of a ratio; 0 uses the ratio."""
    heads: int = 4
    """Attention heads of ``block`` and ``queries`` pooling; they divide ``d_z``."""
    latent_private_len: int = 0
    """Further latents of each decoder that no other decoder reads."""
    refiner: RefinerConfig = field(default_factory=RefinerConfig)
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
    dropout: float = 0.0
    """Dropout of the adapter's hidden layer."""
    use_soft_prompt: bool = True
    """The decoder reads the latents as vectors among its input embeddings."""
    use_deep_prefix: bool = False
    """The decoder reads the latents in the keys and values of every layer."""
    deep_prefix_len: int = 0
    """Positions of the deep prefix, each reading all latents; 0 has one position per latent,
    which it shares with the soft prompt where there is one."""
    deep_prefix_dropout: float = 0.0
    """Dropout in front of the deep prefix's keys and values."""


@dataclass(frozen=True, kw_only=True)
class GistConfig:
    use_gist_head: bool = True
    """Each decoder's unit has a head that names the context's first tokens from the latents;
    ``objectives.gist`` is its weight. It is not used to answer."""
    gist_len: int = 48
    """How many tokens it names."""
    hidden: int = 256
    """Width of the head, a multiple of its 4 attention heads."""
    layers: int = 1
    """Its transformer layers."""


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
    chat: bool | None = None
    """Wrap prompts in the tokenizer's chat template; null does where it has one."""
    bos: Literal["auto", "always", "never"] = "auto"
    """Whether a prompt opens with BOS; ``auto`` does what the tokenizer does."""
    precision: Literal["fp32", "bf16"] | None = None
    """Of the frozen weights; null is the run's own."""
    quantization: Literal["none", "nf4", "int8"] = "none"
    """``nf4`` loads the frozen weights in 4 bits, ``int8`` in 8 (they need bitsandbytes)."""
    gradient_checkpointing: bool = False
    """Recompute the decoder's layers in backward instead of keeping their activations."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    trust_remote_code: bool = False
    """Allow the model's repository to run its own code."""


@dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    tf: float = 1.0
    """Weight of the teacher-forced cross-entropy over the answer."""
    first: float = 0.0
    """Weight of the cross-entropy of the answer's first token."""
    first_peak: float | None = None
    """Weight of ``first`` at a stage's start; it then falls to ``first`` on a cosine. null: no
    schedule."""
    first_hold: float = 0.3
    """Share of a stage for which the peak is held."""
    kce: float = 0.0
    """Weight of the cross-entropy over the first ``k`` answer tokens."""
    k: int = 4
    """How many answer tokens ``kce`` covers."""
    k_start: int | None = None
    """``k`` at a stage's start, from where it goes linearly to ``k``; null: no curriculum."""
    kd: float = 1.0
    """Weight of KL(text teacher || latent student) over the answer positions."""
    kd_temperature: float = 1.0
    """Temperature of both distributions in ``kd``; the loss is scaled by its square."""
    kd_positions: int = 0
    """``kd`` covers the first so many answer tokens; 0 all of them."""
    state: float = 0.0
    """Weight of the distance between the hidden states after wire and text, at the answer's
    positions."""
    state_layers: tuple[int, ...] = ()
    """Layers that ``state`` compares, from 1; none given compares all of them."""
    span: float = 1.0
    """Weight of the distance between what stands at each latent's position, in the soft prompt and
    in the deep prefix, and the mean of the decoder's own states, keys and values of the text it
    stands for; needs tokenizers that know their offsets."""
    span_layer: int = 0
    """Which states the soft prompt is compared with: 0 for the input embeddings, n for those after
    the decoder's n-th layer."""
    latent_align: float = 0.0
    """Weight of each soft-prompt vector's distance to the nearest input embedding."""
    manifold: float = 0.0
    """Weight of the distance between the soft prompt's and the input embeddings' statistics."""
    scale_l2: float = 0.0
    """Weight of the squared drift of the adapter's scale from where it started."""
    gist: float = 0.1
    """Weight of the gist head's cross-entropy; see ``gist``."""
    ae: float = 0.0
    """Weight of reconstruction: the decoder repeats the text from its wire."""
    ae_tokens: int = 64
    """``ae`` covers the text's first so many tokens; 0 all of them."""
    continuation: float = 0.0
    """Weight of continuation: in mixed steps, the text behind the wire's part of it."""
    auto_weight: bool = False
    """Scale the weights so that every trained objective's share of the gradient at the decoder's
    inputs is its weight's share."""
    auto_interval: int = 20
    """Steps between measurements of those shares."""

    @property
    def weights(self) -> dict[str, float]:
        """Of every objective, by name."""
        return {name: float(getattr(self, name)) for name in OBJECTIVES}


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
    """Peak learning rate of the adapters and of what the encoder has beside its language model."""
    prefix_lr: float = 1e-3
    """Peak learning rate of the deep prefixes."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """``adamw8bit`` keeps the moments in 8 bits (needs bitsandbytes and ``sharding.backend:
    fsdp``)."""
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
    """Passes over the stage's training examples, in place of ``steps``."""
    samples: int | None = None
    """Training examples of this stage, 0 all of them; null is ``data.samples``. The smaller choice
    is part of the larger one."""
    batch_size: int | None = None
    """Examples per optimizer step of this stage; null is ``train.batch_size``."""
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
    warmup_text_latent_prob: float = 0.0
    """Share of steps, at the stage's start, in which part of each context stays text (``mode:
    mixed``); it falls linearly to 0 over the warm-up."""
    warmup_text_latent_steps: int = 0
    """Steps of that warm-up; 0 is the whole stage."""
    warmup_text_latent_share: float = 0.8
    """Largest part of a context that stays text in such a step, at the stage's start."""
    warmup_text_latent_share_end: float = 0.8
    """The same at the warm-up's end."""
    ratios: tuple[int, ...] = ()
    """Train for several ratios at once; none given trains for ``wire.ratio``."""
    ratio_mode: Literal["sampled", "summed"] = "sampled"
    """``sampled`` draws a ratio for each text and step, ``summed`` reads each text at all."""
    latent_keep_start: float = 1.0
    """Share of latents that are kept at the stage's start; the others are zero for the step."""
    latent_keep_end: float = 1.0
    """The same at the stage's end."""
    latent_keep_power: float = 1.0
    """Exponent of the way between the two; 1 is linear, more changes later."""


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

    def batch_sizes(self) -> dict[str, int]:
        """Examples per optimizer step, by the key that sets them; every size that is used."""
        own = {"train.stage_a.batch_size": self.stage_a, "train.stage_b.batch_size": self.stage_b}
        sizes = {
            key: stage.batch_size for key, stage in own.items() if stage.batch_size is not None
        }
        return sizes if len(sizes) == len(own) else {"train.batch_size": self.batch_size, **sizes}

    def stage_batch_size(self, name: str) -> int:
        """Examples per optimizer step of one stage."""
        own = self.stage(name).batch_size
        return self.batch_size if own is None else own


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    interval: int = 0
    """Steps between validations on generated answers; a stage's last step has one too. 0 never."""
    samples: int = 96
    """Examples of the validation split; 0 is all of it."""
    metric: Literal["em", "f1", "nll"] = "em"
    """What makes a checkpoint the best: the mean of this over the decoders."""
    patience: int = 0
    """Validations without a new best after which the stage ends; 0 never ends it early."""


@dataclass(frozen=True, kw_only=True)
class DiagnosticsConfig:
    log_interval: int = 10
    """Steps between rows of ``diagnostics.jsonl``; a stage's last step always has one."""
    grad_diag_interval: int = 50
    """Steps between rows with every objective's gradient norm, whatever its weight; 0 never."""
    grad_diag_components: tuple[str, ...] = ()
    """Objectives whose gradient norms are measured; none given measures all."""
    diagnostic_log: str | None = None
    """The stream's file; null is ``diagnostics.jsonl`` in the run's folder."""


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
    ratios: tuple[int, ...] = ()
    """Further ratios at which the wire is read, each as an arm ``latent@<ratio>``."""
    checkpoint: Literal["best", "last"] = "best"
    """``best`` by validation, where there was one, or the ``last``."""


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
    gist: GistConfig = field(default_factory=GistConfig)
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
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)


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
