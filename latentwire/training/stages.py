"""What Stages A and B are: their length, their sample order, and what each step does."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from latentwire.config import Config
from latentwire.data.example import Example
from latentwire.data.loader import MixedSplit
from latentwire.data.sampler import Sampler
from latentwire.data.sources import DataSource
from latentwire.objectives import schedules


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Everything of one step that depends on (seed, stage, step) and not on ranks."""

    stage: str
    step: int
    examples: tuple[Example, ...]
    mixed: MixedSplit | None
    rates: dict[str, float]
    """Learning rate by parameter group."""
    weights: dict[str, float]
    """Weight of each objective."""
    is_last: bool
    """Whether the stage ends with this step."""

    @property
    def mode(self) -> str:
        return "latent" if self.mixed is None else "mixed"

    def micro_batches(self, number: int) -> list[tuple[Example, ...]]:
        """The examples in ``number`` equal parts."""
        size = len(self.examples) // number
        return [self.examples[part * size : (part + 1) * size] for part in range(number)]

    def trained(self, objectives: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those objectives that this step trains; others are only measured."""
        return {name: value for name, value in objectives.items() if self.weights.get(name, 0) > 0}


class Stage:
    """One training stage over one data source.

    Args:
        name: ``A`` or ``B``.
    """

    def __init__(self, config: Config, name: str, source: DataSource) -> None:
        self.name = name
        self._config = config
        self._settings = config.train.stage(name)
        self._source = source
        self._batch_size = config.train.stage_batch_size(name)
        samples = self._settings.samples
        self._sampler = Sampler(
            source.counts(),
            seed=config.run.seed,
            stage=name,
            questions_per_context=config.data.questions_per_context,
            samples=config.data.samples if samples is None else samples,
        )
        self.num_steps = self._length()

    def plan(self, step: int) -> StepPlan:
        """What step ``step`` (from 1) does."""
        size = self._batch_size
        pairs = self._sampler.take((step - 1) * size, size)
        return StepPlan(
            stage=self.name,
            step=step,
            examples=tuple(self._source.examples(document)[q] for document, q in pairs),
            mixed=self._mixed(step),
            rates=self._rates(step),
            weights=self._weights(step),
            is_last=step == self.num_steps,
        )

    def _length(self) -> int:
        if self._settings.steps is not None:
            return self._settings.steps
        assert self._settings.epochs is not None, "validated with the configuration"
        examples = self._settings.epochs * self._sampler.num_examples
        return math.ceil(examples / self._batch_size)

    def _mixed(self, step: int) -> MixedSplit | None:
        settings = self._settings
        steps = settings.warmup_text_latent_steps or self.num_steps
        prob = schedules.linear(step, steps=steps, start=settings.warmup_text_latent_prob, end=0)
        seed = f"{self._config.run.seed}/{self.name}/{step}"
        if random.Random(f"{seed}/mode").random() >= prob:
            return None
        share = schedules.linear(
            step,
            steps=steps,
            start=settings.warmup_text_latent_share,
            end=settings.warmup_text_latent_share_end,
        )
        return MixedSplit(seed=seed, share=share)

    def _weights(self, step: int) -> dict[str, float]:
        settings, weights = self._settings, self._config.objectives.weights
        factor = schedules.geometric(
            step, steps=self.num_steps, start=settings.span_start, end=settings.span_end
        )
        return weights | {"span": factor * weights["span"]}

    def _rates(self, step: int) -> dict[str, float]:
        settings, optim = self._settings, self._config.optim
        adapter = schedules.learning_rate(
            step, steps=self.num_steps, warmup=settings.warmup_steps, floor=optim.min_lr
        )
        encoder = schedules.encoder_learning_rate(
            step,
            steps=self.num_steps,
            warmup=settings.warmup_steps,
            floor=optim.min_lr,
            start=settings.encoder_start,
        )
        return {
            "encoder": settings.lr_scale * optim.encoder_lr * encoder,
            "adapter": settings.lr_scale * optim.adapter_lr * adapter,
        }
