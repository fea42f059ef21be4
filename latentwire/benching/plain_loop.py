"""The obvious loop that the trainer is compared with, in plain Hugging Face terms.

Every question is a sequence of its own: its context is encoded for it alone, the decoders take it
as ``inputs_embeds`` and give logits at every position, and the text teacher reads the text anew in
every step. Objectives, weights, clipping and optimizer are the trainer's, so that losses can be
compared beside times. One process has everything.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentwire.config import Config, ConfigError
from latentwire.data.encoder_texts import EncoderTexts
from latentwire.data.example import Example
from latentwire.distributed.adamw import parameter_groups
from latentwire.distributed.assembly import Job
from latentwire.training.stages import StepPlan
from latentwire.wire.wire import build_wire

OBJECTIVES = ("tf", "first", "kce", "kd")
"""What the loop trains."""
_IGNORED = -100
_TINY = 1e-9


def problems(config: Config) -> list[str]:
    """Settings of a configuration that the plain loop has no plain way for."""
    found = []
    others = sorted({k for k, w in config.objectives.weights.items() if w} - set(OBJECTIVES))
    gist_only = others == ["gist"] and not config.gist.use_gist_head
    if others and not gist_only:
        found.append(f"objectives: {', '.join(others)} (set to 0)")
    if config.adapter.use_deep_prefix:
        found.append("adapter.use_deep_prefix: true (set to false)")
    if config.objectives.kd_positions or config.objectives.auto_weight:
        found.append("objectives.kd_positions and objectives.auto_weight (set to 0 and false)")
    for name, settings in config.decoders.items():
        if settings.lora.rank or settings.shard > 1 or settings.gradient_checkpointing:
            found.append(
                f"decoders.{name}: lora, shard or gradient_checkpointing (leave at their defaults)"
            )
    for letter in ("a", "b"):
        stage = getattr(config.train, f"stage_{letter}")
        if (
            stage.warmup_text_latent_prob
            or stage.latent_keep_start < 1
            or stage.latent_keep_end < 1
        ):
            found.append(f"train.stage_{letter}: mixed steps or dropped latents (leave out)")
        if stage.ratios:
            found.append(f"train.stage_{letter}.ratios: several ratios (leave out)")
    return [f"--against naive: the plain loop does not do {words}" for words in found]


@dataclass(frozen=True, kw_only=True)
class _Prompts:
    """Sequences of one decoder, padded on the right."""

    mask: Tensor
    """[examples, length]: 1 at real positions."""
    labels: Tensor
    """[examples, length]: the token after each position, where it is one of the answer's."""
    place: Tensor
    """[examples, length]: that token's place in the answer."""


class PlainLoop:
    """Trains its own copy of the job's fresh wire with the job's frozen decoders.

    Args:
        job: of a world of one.

    Raises:
        ConfigError: the configuration asks for something that the loop does not do.
    """

    def __init__(self, job: Job) -> None:
        if found := problems(job.config):
            raise ConfigError(found)
        assert job.groups.world.size == 1
        self._job = job
        config, tokenizer = job.config, job.tokenizer
        self._wire = build_wire(
            config, job.shapes, num_lead=len(tokenizer.lead), device=job.device
        ).train()
        self._bf16 = config.precision == "bf16"
        optim = config.optim
        groups = [
            group
            for unit in (self._wire.shared, *self._wire.units.values())
            for group in parameter_groups(unit.parameter_groups(), optim)  # type: ignore[operator]
        ]
        self._optimizer = torch.optim.AdamW(
            groups, betas=(optim.beta1, optim.beta2), lr=0.0, fused=True
        )
        self._parameters = [p for group in groups for p in group["params"]]

    def step(self, plan: StepPlan) -> dict[str, dict[str, Tensor]]:
        """One optimizer step; returns every decoder's objectives over the batch.

        Numbers of answer tokens are taken over the whole batch, as the trainer does.
        """
        job, accumulation = self._job, self._job.config.train.accumulation
        found: dict[str, dict[str, Tensor]] = {name: {} for name in job.decoders}
        counts = {name: self._counts(name, plan) for name in job.decoders}
        for examples in plan.micro_batches(accumulation):
            with self._autocast():
                latents, latent_counts = self._encode(examples)
                losses: list[Tensor] = []
                for name in job.decoders:
                    sums = self._read(name, examples, latents, latent_counts, plan)
                    values = {key: value / counts[name][key] for key, value in sums.items()}
                    weighted = [plan.weights[key] * value for key, value in values.items()]
                    losses.append(job.config.decoders[name].weight * torch.stack(weighted).sum())
                    for key, value in values.items():
                        found[name][key] = found[name].get(key, 0) + value.detach()
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        for group in self._optimizer.param_groups:
            group["lr"] = plan.rates[group["name"]]
        if job.config.optim.max_grad_norm:
            nn.utils.clip_grad_norm_(self._parameters, job.config.optim.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return found

    def _autocast(self) -> AbstractContextManager[object]:
        if not self._bf16:
            return nullcontext()
        return torch.autocast(self._job.device.type, dtype=torch.bfloat16)

    def _counts(self, name: str, plan: StepPlan) -> dict[str, int]:
        answers = [len(self._job.prompts[name].wire(example).answer) for example in plan.examples]
        tokens = sum(answers)
        kce = sum(min(plan.k, answer) for answer in answers)
        return {"tf": tokens, "first": len(answers), "kce": kce, "kd": tokens}

    def _encode(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Latents of each example's context, encoded for it alone, and their number."""
        tokenizer, device = self._job.tokenizer, self._job.device
        texts = [self._job.any_prompts.slot_text(example) for example in examples]
        ids = [tokenizer.lead + tokenizer.ids(text) for text in texts]
        length = max(len(row) for row in ids)
        counts = torch.tensor([tokenizer.num_latents(text) for text in texts])
        most = int(counts.max())
        batch = EncoderTexts(
            ids=torch.tensor([row + [0] * (length - len(row)) for row in ids]),
            num_tokens=torch.tensor([len(row) - len(tokenizer.lead) for row in ids]),
            text_of=torch.arange(len(ids)),
            counts=counts,
            keep=torch.ones(len(ids), most, dtype=torch.bool),
            max_latents=most,
        )
        return self._wire.encode(batch.to(device)), counts.to(device)

    def _read(
        self,
        name: str,
        examples: Sequence[Example],
        latents: Tensor,
        counts: Tensor,
        plan: StepPlan,
    ) -> dict[str, Tensor]:
        """One decoder's objectives, summed over the examples."""
        job = self._job
        decoder, prompts, device = job.decoders[name], job.prompts[name], job.device
        wire = self._wire.inject(name, latents, counts)
        rows, student = [], []
        for index, example in enumerate(examples):
            asked = prompts.wire(example)
            positions = job.tokenizer.num_positions(prompts.slot_text(example))
            behind = (*asked.after, *asked.answer[:-1])
            rows.append(
                torch.cat(
                    [
                        decoder.embed(torch.tensor(asked.before, device=device, dtype=torch.long)),
                        wire.vectors[index, :positions].to(decoder.inputs.whole.dtype),
                        decoder.embed(torch.tensor(behind, device=device)),
                    ]
                )
            )
            student.append((len(rows[-1]), asked.answer))
        own = _prompts(student, device)
        embeds = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        logits = decoder.model(inputs_embeds=embeds, attention_mask=own.mask).logits.float()
        losses = F.cross_entropy(
            logits.flatten(0, 1), own.labels.flatten(), ignore_index=_IGNORED, reduction="none"
        ).view_as(own.labels)
        sums = {
            "tf": losses.sum(),
            "first": losses[own.place == 0].sum(),
            "kce": losses[(own.place >= 0) & (own.place < plan.k)].sum(),
        }
        if plan.weights["kd"] > 0:
            sums["kd"] = self._distilled(name, examples, logits, own)
        return sums

    def _distilled(
        self, name: str, examples: Sequence[Example], logits: Tensor, own: _Prompts
    ) -> Tensor:
        """KL of the student from the teacher, who reads the text now."""
        job = self._job
        decoder, prompts, device = job.decoders[name], job.prompts[name], job.device
        rows, read = [], []
        for example in examples:
            asked = prompts.text(example)
            tokens = (*asked.before, *asked.slot, *asked.after, *asked.answer[:-1])
            rows.append(torch.tensor(tokens))
            read.append((len(tokens), asked.answer))
        text = _prompts(read, device)
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=prompts.pad)
        with torch.no_grad():
            taught = decoder.model(input_ids=ids.to(device), attention_mask=text.mask).logits
        heat = job.config.objectives.kd_temperature
        student = F.log_softmax(logits[own.place >= 0] / heat, dim=-1)
        teacher = F.log_softmax(taught.float()[text.place >= 0] / heat, dim=-1)
        return F.kl_div(student, teacher, log_target=True, reduction="sum") * heat**2


def _prompts(rows: Sequence[tuple[int, Sequence[int]]], device: torch.device) -> _Prompts:
    """Of (length, answer) of sequences whose last position predicts the answer's last token."""
    length = max(own for own, _ in rows)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), _IGNORED)
    place = torch.full((len(rows), length), -1)
    for row, (own, answer) in enumerate(rows):
        mask[row, :own] = 1
        labels[row, own - len(answer) : own] = torch.tensor(answer)
        place[row, own - len(answer) : own] = torch.arange(len(answer))
    return _Prompts(mask=mask.to(device), labels=labels.to(device), place=place.to(device))


def largest_difference(
    ours: Mapping[str, Mapping[str, float]], plain: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, float]:
    """Of each objective, over the decoders: |ours - plain| / |plain|."""
    found: dict[str, float] = {}
    for name, values in plain.items():
        for key, value in values.items():
            gap = abs(ours[name][key] - float(value)) / max(_TINY, abs(float(value)))
            found[key] = max(found.get(key, 0.0), gap)
    return found
