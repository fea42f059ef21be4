"""How a wire is trained: the sections on objectives, sharding, stages, validation, diagnostics."""

from dataclasses import dataclass, field
from typing import Literal

OBJECTIVES = (
    "tf first kce kd state span latent_align manifold scale_l2 gist ae continuation"
).split()
"""Names of all objectives, in the order of tables."""

SINKS = ("tensorboard", "wandb")
"""Names of what diagnostics can go to beside their file; each is an extra of that name."""


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
    """Scale the weights so that every trained objective's share of the gradient in the adapters and
    deep prefixes is its weight's share, by a factor of up to 10. Not the gist's, which has none
    there."""
    auto_interval: int = 20
    """Steps between measurements of those shares."""

    @property
    def weights(self) -> dict[str, float]:
        """Of every objective, by name."""
        return {name: float(getattr(self, name)) for name in OBJECTIVES}


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    cache: bool = False
    """What each decoder says after the training's texts is computed once, before training, and kept
    in files that later runs read too; without it ``kd`` reads every text prompt in every step."""
    top_k: int = 64
    """Likeliest tokens that are kept of each distribution, all others together as one more; 0 keeps
    the whole vocabulary."""
    bits: Literal[16, 32] = 16
    """Of a log-probability in the files."""
    folder: str = ""
    """Where the files go; empty is ``teachers`` in ``checkpoint.root``, which its runs share."""


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
    """Multiplies all peak learning rates in this stage."""
    warmup_steps: int = 20
    """Steps of linear warm-up of the learning rates."""
    encoder_start: int = 0
    """A pretrained encoder stays frozen for this many steps while the adapters warm up; one that
    starts from nothing, or reads a frozen model, does not wait."""
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
    """``sampled`` draws a ratio for each text and step, one named twice twice as often; ``summed``
    reads each text at all."""
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
    """Steps between rows with the objectives' gradient norms, of those with weight 0 too as far as
    they cost no further forward; 0 never."""
    grad_diag_components: tuple[str, ...] = ()
    """Objectives whose gradient norms are measured, whatever they cost; none given measures those
    that are trained or cost no further forward."""
    grad_diag_units: tuple[str, ...] = ()
    """Trained parts in which the objectives' gradient norms are measured too: ``encoder``,
    ``refiner``, ``adapter``, ``deep_prefix``, ``gist``, ``lora``; none given measures all that are
    there, ``none`` none. ``encoder`` and ``refiner`` cost the encoder's backward once more for each
    decoder and objective."""
    queue_rows: int = 4096
    """Rows that wait on a rank to be written; of more, the oldest without gradient norms go first
    and are counted in ``dropped``."""
    step_close_seconds: float = 30.0
    """A step's rows are written without those that have not come after so long."""
    drain_seconds: float = 10.0
    """How long the end of a run waits for rows to be written."""
    health_interval: int = 100
    """Steps between rows on the wire's health; 0 never."""
    health_samples: int = 24
    """Held-out examples that they are measured on, or a little more, so that ranks share them
    evenly."""
    health_warmup: int = 200
    """Steps of a run after which a wire that reads no better than another text's has collapsed."""
    stop_on_collapse: bool = False
    """Whether a collapsed wire ends the run."""
    diagnostic_log: str | None = None
    """The stream's file; null is ``diagnostics.jsonl`` in the run's folder."""
    sinks: tuple[str, ...] = ()
    """Where the rows go beside that file: ``tensorboard`` (event files in the run's folder),
    ``wandb`` (Weights & Biases; its variable ``WANDB_MODE`` may be ``offline``)."""
