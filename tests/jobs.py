"""Jobs of any layout and backend, and one process that does the same by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from conftest import REPOSITORY
from safetensors import safe_open
from torch import Tensor

from latentwire import config_file
from latentwire.checkpointing import components, state
from latentwire.checkpointing.commit import Step
from latentwire.checkpointing.state import Place
from latentwire.checkpointing.writer import CheckpointWriter
from latentwire.config import Config
from latentwire.data.batch import PromptBatch
from latentwire.data.encoder_texts import EncoderTokenizer
from latentwire.data.example import Example
from latentwire.data.loader import GlobalBatch, decoder_batch, global_batch
from latentwire.data.prompts import prompts_for
from latentwire.data.sources import open_source
from latentwire.data.spans import Spans, decoder_spans
from latentwire.decoders.answered import Answered
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.decoders.loading import load_decoder
from latentwire.decoders.teacher import teacher
from latentwire.distributed.assembly import Job, assemble
from latentwire.distributed.groups import ProcessGroups
from latentwire.distributed.sharding import ShardedUnit
from latentwire.distributed.state_tensors import whole_tensor
from latentwire.distributed.topology import plan
from latentwire.objectives import alignment, distillation, tokens
from latentwire.training.saving import unit_groups
from latentwire.training.stages import Stage, StepPlan
from latentwire.training.trainer import Trainer
from latentwire.wire.unit import Injection
from latentwire.wire.wire import build_wire

BACKENDS = {
    "fsdp": ["sharding.backend=fsdp"],
    **{
        name: [
            "sharding.backend=deepspeed",
            f"sharding.ds_config={REPOSITORY / 'ds_configs' / name}.json",
        ]
        for name in ("zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
    },
    # Parameters as small as those of the tests stay whole with the shipped files.
    "zero3_sharded": [
        "sharding.backend=deepspeed",
        f"sharding.ds_config={REPOSITORY / 'tests' / 'ds_configs' / 'zero3_sharded.json'}",
    ],
}
"""Overrides of each backend."""
BF16_BACKENDS = {f"{name} bf16": [*more, "precision=bf16"] for name, more in BACKENDS.items()}
PARTS = ("weights", "first_moments", "second_moments")
"""Of a unit's state."""
ENCODERS = {"full": ["encoder.lora.rank=0"], "lora": ["encoder.lora.rank=4"]}
LAYOUTS = {
    "1": (1, ["placement=colocated"]),
    "2": (2, ["placement=separate"]),
    "3": (3, ["placement=separate"]),
    "4": (4, ["placement=separate"]),
    "1 + 3": (4, ["placement=separate", "decoders.llama.ranks=1"]),
    "2 colocated": (2, ["placement=colocated"]),
}
"""World size and overrides of each layout; world 3 is a group of two ranks beside one of one."""


def make_job(config: Config, world_size: int, *, ranks_per_node: int | None = None) -> Job:
    topology = plan(
        config.decoders,
        placement=config.placement,
        world_size=world_size,
        ranks_per_node=ranks_per_node,
    )
    return assemble(config, ProcessGroups(topology, device=torch.device("cpu"), timeout=60))


def make_trainer(job: Job) -> Trainer:
    return Trainer(job, record=lambda record: None, save=lambda stage, step: None)


def make_stage(config: Config, name: str = "A") -> Stage:
    source = open_source(
        source="profiles", path=None, setting=None, split="train", seed=config.run.seed
    )
    return Stage(config, name, source)


def parameters(unit: ShardedUnit) -> dict[str, torch.nn.Parameter]:
    """The trained parameters of a unit by their logical names."""
    groups: Any = unit.module.parameter_groups()  # type: ignore[operator]
    return {name: parameter for members in groups.values() for name, parameter in members}


def whole_gradients(unit: ShardedUnit) -> dict[str, Tensor]:
    """The reduced gradient of every parameter, whole, whatever the backend. All members call."""
    if not hasattr(unit.module, "allreduce_gradients"):
        return {n: p.grad.full_tensor() for n, p in parameters(unit).items()}  # type: ignore[union-attr]
    from deepspeed.utils import safe_get_full_grad

    return {name: safe_get_full_grad(p).clone() for name, p in parameters(unit).items()}


def job_gradients(job: Job, step: StepPlan) -> dict[str, Tensor]:
    """Whole gradients of one step, of every unit this rank has a part in, and their norm."""
    found: dict[str, Tensor] = {}
    for name, unit in job.units.items():
        # Keeps the gradients in place of spending them.
        def keep(rates: Any, factor: Any, name: str = name, unit: ShardedUnit = unit) -> None:
            found.update({f"{name}.{key}": grad for key, grad in whole_gradients(unit).items()})

        unit.step = keep  # type: ignore[method-assign]
    record = make_trainer(job).step(step)
    return found | {"norm": record.gradient.norm.reshape(1)}


class SingleProcess:
    """Everything in one process by plain autograd: no groups, no sharding, no exchange."""

    def __init__(self, overrides: list[str]) -> None:
        self.config = config_file.load("smoke", overrides)
        cpu = torch.device("cpu")
        self.decoders: dict[str, FrozenDecoder] = {
            name: load_decoder(name, settings, dtype=torch.float32, device=cpu)
            for name, settings in self.config.decoders.items()
        }
        shapes = {
            name: d.shape(with_cache=self.config.adapter.use_deep_prefix)
            for name, d in self.decoders.items()
        }
        self.tokenizer = EncoderTokenizer(self.config, window=1024)
        self.wire = build_wire(self.config, shapes, num_lead=len(self.tokenizer.lead), device=cpu)
        self.prompts = {
            name: prompts_for(self.config, name, d.tokenizer, window=1024)
            for name, d in self.decoders.items()
        }
        self.units: dict[str, Any] = {"encoder": self.wire.shared}
        self.units |= {f"adapter_{name}": self.wire.units[name] for name in self.decoders}

    def losses(self, step: StepPlan) -> tuple[Tensor, dict[str, float]]:
        """The loss of a whole step, and its unweighted objectives by decoder."""
        total, values = torch.zeros(()), {}
        for name, decoder in self.decoders.items():
            parts = self._objectives(name, decoder, step)
            values |= {f"{name}/{key}": float(value.detach()) for key, value in parts.items()}
            loss = sum(step.weights[key] * value for key, value in parts.items())
            total = total + self.config.decoders[name].weight * loss
        return total, values

    def inject(self, name: str, batch: GlobalBatch) -> Injection:
        """What a decoder reads for every wire of a batch."""
        tokenizer = self.tokenizer
        wires = [batch.wire(index, tokenizer) for index in range(len(batch.texts))]
        counts = [tokenizer.num_latents(wire.text, wire.ratio) for wire in wires]
        texts = tokenizer.batch(wires, rows=len(wires), max_latents=max(counts))
        return self.wire.inject(name, self.wire.encode(texts), torch.tensor(counts))

    def _objectives(self, name: str, decoder: FrozenDecoder, step: StepPlan) -> dict[str, Tensor]:
        prompts, adapter = self.prompts[name], self.config.adapter
        batch = global_batch(step.examples, prompts, draws=step.draws)
        wire = self.inject(name, batch)
        prompt = decoder_batch(batch, prompts, self.tokenizer, part=0, num_parts=1).latents_prompt
        said = decoder.answer(prompt, wire, with_prefixes=True)
        losses = tokens.token_losses(said.logits, prompt.targets)
        taught = teacher(decoder, prompts, step.examples).logits
        wires = [batch.wire(index, self.tokenizer) for index in range(len(batch.texts))]
        begin, num_slots = int(adapter.use_frame), adapter.deep_prefix_len
        # Private latents stand for no text.
        first = begin + self.config.wire.latent_private_len
        parts = []
        if adapter.use_soft_prompt:
            spans = decoder_spans(wires, self.tokenizer, prompts)
            layer = self.config.objectives.span_layer
            states = decoder.states(spans.ids, spans.mask, layer=layer)
            body = wire.vectors[:, num_slots + first : wire.vectors.shape[1] - begin]
            distances = alignment.span(body, states, spans.latent)
            parts.append(distances[list(batch.text_of)].mean())
        if adapter.use_deep_prefix:
            spans = decoder_spans(wires, self.tokenizer, prompts, num_spans=num_slots or None)
            first = begin if num_slots else first
            parts.append(span_of_cache(decoder, prompt, said, spans, first=first))
        return {
            "tf": losses.mean(),
            "first": losses[prompt.target_place == 0].mean(),
            "kd": distillation.kd(said.logits, taught, temperature=1.0) / len(losses),
            "span": torch.stack(parts).mean(),
        }

    def gradients(self, step: StepPlan) -> dict[str, Tensor]:
        self.losses(step)[0].backward()  # type: ignore[no-untyped-call]
        found = {}
        for name, unit in self.units.items():
            for key, parameter in unit.named_parameters():
                if parameter.requires_grad:
                    assert parameter.grad is not None, key
                    found[f"{name}.{key}"] = parameter.grad
        return found

    def curve(self, steps: list[StepPlan]) -> list[dict[str, float]]:
        """Every objective at every step of training by torch's own AdamW and clipping."""
        optim = self.config.optim
        groups = [
            {
                "name": name,
                "params": [p for _, p in members if (p.ndim >= 2) == matrices],
                "weight_decay": optim.weight_decay if matrices else 0.0,
            }
            for unit in self.units.values()
            for name, members in unit.parameter_groups().items()
            for matrices in (True, False)
        ]
        adamw = torch.optim.AdamW(groups, lr=0.0, betas=(optim.beta1, optim.beta2))
        every = [p for group in groups for p in group["params"]]
        rows = []
        for step in steps:
            loss, values = self.losses(step)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(every, optim.max_grad_norm)
            for group in adamw.param_groups:
                group["lr"] = step.rates[group["name"]]
            adamw.step()
            adamw.zero_grad()
            rows.append(values)
        return rows


def wire_reach(job: Job, examples: Sequence[Example]) -> dict[str, float]:
    """Norm of d(logits)/d(wire) in evaluation, for each decoder of a world of one."""
    job.wire.eval()
    batch = global_batch(examples, job.any_prompts)
    latents = job.latents(batch).detach().requires_grad_(True)
    norms = {}
    for name, decoder in job.decoders.items():
        own = decoder_batch(batch, job.prompts[name], job.tokenizer, part=0, num_parts=1)
        logits = decoder.answer(own.latents_prompt, job.inject(name, latents, own)).logits
        (grad,) = torch.autograd.grad(logits.square().sum(), latents)
        norms[name] = float(grad.norm())
    job.wire.train()
    return norms


def span_of_cache(
    decoder: FrozenDecoder, prompt: PromptBatch, said: Answered, spans: Spans, *, first: int
) -> Tensor:
    """The span objective of a deep prefix, position by position: mean over the examples.

    Args:
        first: position in the wire of the first latent that stands for text.
    """
    assert said.prefixes is not None
    text = decoder.keys_and_values(spans.ids, spans.mask)
    total = torch.zeros(())
    for prefix, row in enumerate(prompt.prefix_soft_row.tolist()):
        distances = []
        for slot in range(int(spans.latent[row].max()) + 1):
            stands_for = spans.latent[row] == slot
            if not stands_for.any():
                continue
            (place,) = (prompt.prefix_soft[prefix] == slot + first).nonzero().flatten().tolist()
            for own, meant in zip(said.prefixes, text, strict=True):
                for found, whole in zip(own, meant, strict=True):
                    mean = whole[row, stands_for].mean(0)
                    distances.append(1 - torch.cosine_similarity(found[prefix, place], mean, dim=0))
        total = total + torch.stack(distances).mean() * (prompt.prefix_of == prefix).sum()
    return total / len(prompt.prefix_of)


def job_curve(job: Job, steps: list[StepPlan]) -> list[dict[str, float]]:
    """Every objective at every step of training, of the decoders this rank hosts."""
    trainer = make_trainer(job)
    rows = []
    for step in steps:
        rows.append(
            {
                f"{row['decoder']}/{key}": row[key]
                for row in trainer.step(step).rows()
                for key in ("tf", "first", "kd", "span")
            }
        )
    return rows


def exported(job: Job) -> dict[str, Tensor]:
    """The whole state of every unit that this rank has a part of."""
    found: dict[str, Tensor] = {}
    for name, unit in job.units.items():
        state = unit.export_state()
        for part in PARTS:
            for key, tensor in getattr(state, part).items():
                found[f"{name}.{part}.{key}"] = whole_tensor(tensor)
        found[f"{name}.num_steps"] = torch.tensor(state.num_steps)
    return found


def save_job(job: Job, folder: Path, step: int, *, place: Place | None = None) -> None:
    """Publishes a step of Stage A, and waits for it. All ranks must call."""
    writer = CheckpointWriter(
        folder,
        job.units,
        unit_groups(job),
        world=job.groups.world,
        settings=job.config.checkpoint,
        decoders={},
        config_text="",
        metric=job.config.validation.metric,
    )
    with writer:
        writer.save(place or Place(stage="A", step=step, samples=0))


def load_job(job: Job, step: Step | None, *, with_optimizer: bool = True) -> None:
    """Loads a published step into every unit. All ranks must call."""
    assert step is not None
    state.restore(step, job.units, unit_groups(job), with_optimizer=with_optimizer)


def stored(step: Path) -> dict[str, Tensor]:
    """Every trained tensor of a step, whole, read file by file as any reader of safetensors would;
    named as ``exported`` does."""
    pieces: dict[str, list[tuple[list[int], Tensor]]] = {}
    for path in sorted(step.glob("*/shard-*.safetensors")):
        unit = components.unit_of(path.parent.name)
        with safe_open(path, framework="pt") as file:
            offsets = json.loads(file.metadata()["DCP_SHARDING_INFO"])
            for key in file.keys():  # noqa: SIM118
                part, name = key.split(".", 1)
                part = PARTS[components.PARTS.index(part)]
                piece = (offsets[key]["saved_offsets"], file.get_tensor(key))
                pieces.setdefault(f"{unit}.{part}.{name}", []).append(piece)
    assert pieces, step
    return {
        name: torch.cat([tensor for _, tensor in sorted(found, key=lambda piece: piece[0])])
        for name, found in pieces.items()
    }


def largest_curve_difference(
    reference: list[dict[str, float]], ranks: list[list[dict[str, float]]]
) -> float:
    """Largest absolute difference of any objective of any step on any rank."""
    return max(
        abs(row[key] - expected[key])
        for rows in ranks
        for row, expected in zip(rows, reference, strict=True)
        for key in row
    )


def largest_gradient_difference(
    reference: dict[str, Tensor], ranks: list[dict[str, Tensor]]
) -> float:
    """Largest relative difference of any parameter's gradient, and of the global norm, anywhere.

    Every parameter must be on some rank.
    """
    # One sum over all of them rounds more in fp32 than what it is compared with.
    every = torch.cat([grad.flatten() for grad in reference.values()]).double()
    norm = every.norm().float().reshape(1)
    expected = reference | {"norm": norm}
    assert set().union(*ranks) == expected.keys()
    # A gradient that is zero by construction (LoRA's first) has only rounding to compare.
    floor = 1e-3 * float(norm)
    return max(
        float((found - expected[key]).norm()) / max(float(expected[key].norm()), floor)
        for rank in ranks
        for key, found in rank.items()
    )
