"""The configuration tree: one frozen dataclass a concern, its meaning under each field.

``config_file`` turns YAML and ``key=value`` overrides into this tree and ``config_checks`` checks
what needs nothing but the tree; checks that need files, models or ranks are in
``training/preflight.py``. Both report every problem at once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from latentwire.config_model import (
    AdapterConfig,
    ByteConfig,
    DecoderConfig,
    EncoderConfig,
    GistConfig,
    LoraConfig,
    RefinerConfig,
    WireConfig,
)
from latentwire.config_training import (
    OBJECTIVES,
    SINKS,
    DiagnosticsConfig,
    ObjectivesConfig,
    OptimConfig,
    ShardingConfig,
    StageConfig,
    TeacherConfig,
    TrainConfig,
    ValidationConfig,
)

__all__ = [
    "OBJECTIVES",
    "SINKS",
    "LoraConfig",
    "ByteConfig",
    "EncoderConfig",
    "RefinerConfig",
    "WireConfig",
    "AdapterConfig",
    "GistConfig",
    "DecoderConfig",
    "ObjectivesConfig",
    "ShardingConfig",
    "OptimConfig",
    "StageConfig",
    "TeacherConfig",
    "TrainConfig",
    "ValidationConfig",
    "DiagnosticsConfig",
]


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
    background: bool = True
    """Training waits for a copy to host memory only, and goes on while that is written."""
    keep_last: int = 3
    """This many of the newest checkpoints stay, and the best by validation; 0 keeps all."""
    keep_every: int = 0
    """Checkpoints of steps that this divides stay too; 0 keeps none for that."""
    on_error: Literal["stop", "continue"] = "stop"
    """What a run does when a checkpoint cannot be saved, as on a full disk: ``stop`` at the next
    step, or ``continue`` with a message and without it."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    source: str = "profiles"
    """``profiles`` (generated), ``squad``, ``hotpot`` or ``jsonl``."""
    path: str | None = None
    """A local file, or for ``squad`` and ``hotpot`` a hub data set; None is the source's own
    default."""
    validation_path: str | None = None
    test_path: str | None = None
    """Local files of the same source that are that whole split; what ``data.path`` has is then
    parted among the others alone."""
    setting: Literal["distractor", "gold", "plain", "hard"] | None = None
    """Of ``hotpot``: ``distractor`` (all ten paragraphs) or ``gold`` (the two that hold the
    answer's support). Of ``profiles``: ``plain``, or ``hard`` (longer, several people who share
    attributes, questions in other words and over two facts). null is the first of them."""
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
    """Gold answers are cut to this many tokens of a decoder; see ``eval.max_new_tokens``."""
    token_cache: bool = False
    """The encoder's tokens of all training texts are made before training, once, and kept in
    ``tokens`` in ``checkpoint.root``, where later runs on the same texts find them; without it each
    run makes them as it comes to them."""
    prefetch: int = 1
    """Steps whose batches are laid out ahead, in a thread beside the step that computes; 0 lays
    each out when it is needed."""
    length_buckets: int = 0
    """Global batches in whose reach texts are sorted by length and dealt into batches of alike
    lengths, so that less of a batch is padding; 0 shuffles freely."""


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
    """Seconds that a rank waits for the others until the first step is done, and wherever they load
    or write: one that is not there by then ends the job."""
    step_timeout: float = 120.0
    """The same after the first step of an attempt: one that does not answer is dead, hangs or
    cannot be reached. Above the longest time between two ranks in a step."""
    max_attempts: int = 3
    """Attempts of a scheduler's job in a row that may end without a new checkpoint; then it is not
    queued again."""


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
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
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
