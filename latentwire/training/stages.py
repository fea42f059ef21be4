"""What Stages A and B are: their length, their sample order, and what each step does."""

import hashlib
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from latentwire.config import Config
from latentwire.data.draws import StepDraws
from latentwire.data.example import Example
from latentwire.data.sampler import Buckets, Sampler
from latentwire.data.sources import DataSource
from latentwire.objectives import schedules

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Everything of one step that depends on (seed, stage, step) and not on ranks."""

    stage: str
    step: int
    examples: tuple[Example, ...]
    draws: StepDraws
    rates: dict[str, float]
    """Learning rate by parameter group."""
    weights: dict[str, float]
    """Weight of each objective."""
    k: int
    """Answer tokens under ``kce``."""
    is_last: bool
    """Whether the stage ends with this step."""

    @property
    def mode(self) -> str:
        return "latent" if self.draws.text_share is None else "mixed"

    def dropout_seed(self, rank: int) -> int:
        """Seeds torch's own generator; each rank has its own examples and its own mask."""
        digest = hashlib.sha256(f"{self.draws.seed}/dropout/{rank}".encode()).digest()
        return int.from_bytes(digest[:7], "big")

    def micro_batches(self, number: int) -> list[tuple[Example, ...]]:
        """The examples in ``number`` equal parts."""
        size = len(self.examples) // number
        return [self.examples[part * size : (part + 1) * size] for part in range(number)]

    def trained(self, objectives: Mapping[str, T]) -> dict[str, T]:
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
        self.batch_size = config.train.stage_batch_size(name)
        """Examples per optimizer step, over all ranks."""
        samples = self._settings.samples
        self._sampler = Sampler(
            source.counts(),
            seed=config.run.seed,
            stage=name,
            questions_per_context=config.data.questions_per_context,
            samples=config.data.samples if samples is None else samples,
            buckets=self._buckets(),
        )
        self.num_steps = self._length()

    def plan(self, step: int) -> StepPlan:
        """What step ``step`` (from 1) does."""
        size = self.batch_size
        pairs = self._sampler.take((step - 1) * size, size)
        return StepPlan(
            stage=self.name,
            step=step,
            examples=tuple(self._source.examples(document)[q] for document, q in pairs),
            draws=self._draws(step),
            rates=self._rates(step),
            weights=self._weights(step),
            k=self._k(step),
            is_last=step == self.num_steps,
        )

    def schedules(self, step: int) -> dict[str, Any]:
        """What changes over the steps, as it is in this one, for the record. Unlike ``plan`` it
        draws no examples."""
        draws = self._draws(step)
        return {
            "rates": self._rates(step),
            "weights": {name: weight for name, weight in self._weights(step).items() if weight > 0},
            "k": self._k(step),
            "keep_prob": draws.keep_prob,
            "text_share": draws.text_share,
        }

    def _buckets(self) -> Buckets | None:
        number = self._config.data.length_buckets
        if not number:
            return None
        # Characters are near enough to every tokenizer's tokens.
        return Buckets(
            length=lambda document: len(self._source.examples(document)[0].context),
            batch_size=self.batch_size,
            num_batches=number,
        )

    def examples(self, *, done: int = 0) -> list[Example]:
        """Every example that the steps after ``done`` plan, once each, by document.

        Args:
            done: steps that were made already.
        """
        size = self.batch_size
        pairs = self._sampler.among(done * size, max(0, self.num_steps - done) * size)
        return [self._source.examples(document)[q] for document, q in pairs]

    def _length(self) -> int:
        if self._settings.steps is not None:
            return self._settings.steps
        assert self._settings.epochs is not None, "validated with the configuration"
        examples = self._settings.epochs * self._sampler.num_examples
        return math.ceil(examples / self.batch_size)

    def _draws(self, step: int) -> StepDraws:
        settings = self._settings
        seed = f"{self._config.run.seed}/{self.name}/{step}"
        keep = schedules.linear(
            step,
            steps=self.num_steps,
            start=settings.latent_keep_start,
            end=settings.latent_keep_end,
            power=settings.latent_keep_power,
        )
        return StepDraws(
            seed=seed,
            text_share=self._text_share(step, seed),
            ratios=settings.ratios,
            ratio_mode=settings.ratio_mode,
            keep_prob=keep,
        )

    def _text_share(self, step: int, seed: str) -> float | None:
        """Largest part of a context that stays text in this step; None where none does."""
        settings = self._settings
        steps = settings.warmup_text_latent_steps or self.num_steps
        prob = schedules.linear(step, steps=steps, start=settings.warmup_text_latent_prob, end=0)
        if random.Random(f"{seed}/mode").random() >= prob:
            return None
        return schedules.linear(
            step,
            steps=steps,
            start=settings.warmup_text_latent_share,
            end=settings.warmup_text_latent_share_end,
        )

    def _k(self, step: int) -> int:
        objectives = self._config.objectives
        start = objectives.k if objectives.k_start is None else objectives.k_start
        return schedules.k_at(step, steps=self.num_steps, start=start, end=objectives.k)

    def _weights(self, step: int) -> dict[str, float]:
        settings, objectives = self._settings, self._config.objectives
        weights = objectives.weights
        weights["span"] *= schedules.geometric(
            step, steps=self.num_steps, start=settings.span_start, end=settings.span_end
        )
        if objectives.first_peak is not None:
            weights["first"] = schedules.first_weight(
                step,
                steps=self.num_steps,
                peak=objectives.first_peak,
                hold=objectives.first_hold,
                base=objectives.first,
            )
        if not self._config.gist.use_gist_head:
            weights["gist"] = 0.0
        return weights

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
            "prefix": settings.lr_scale * optim.prefix_lr * adapter,
        }
