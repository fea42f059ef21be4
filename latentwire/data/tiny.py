"""Builds the embedded pair: two small causal LMs of different families that really read.

Each is an ordinary Hugging Face model with its own byte-level tokenizer, pretrained from scratch
on generated profiles and saved by ``save_pretrained``. Every question of a document is trained in
one sequence under a block mask: a question sees the context and itself, at the positions it would
have alone, so training matches the way the model is read later.
"""

import logging
import math
import random
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from latentwire import strict_yaml
from latentwire.config_file import packaged_names
from latentwire.data import profiles_hard
from latentwire.data.profiles import Document, Split, document
from latentwire.data.prompts import DecoderPrompts

log = logging.getLogger(__name__)

_LM_WEIGHT = 0.2
"""Weight of plain language modelling of context and question beside the answers."""
_IGNORE = -100
_MOST, _LAST = 4, 100
"""Times that a phase is trained at most, and the steps that its last answers are of."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of pretraining, with an optimizer and a learning rate's cosine of its own."""

    steps: int
    learning_rate: float
    """Peak."""
    documents: int = 16
    """Of one step."""
    hard_share: float = 0.0
    """Share of a step's documents that are of the harder profiles. Without any the documents
    start short and grow."""
    hard_shape: profiles_hard.Shape = profiles_hard.Shape(facts=(10, 25))
    """Of those documents; by default they go a little beyond the evaluated sizes."""
    until: float | None = None
    """The phase is trained again, up to ``_MOST`` times in all, until the loss of its last answers
    is no more: whether something is learnt in a phase that is learnt all at once is a matter of
    chance."""


@dataclass(frozen=True, kw_only=True)
class TinySpec:
    """One model of the pair: its family, its tokenizer and its sizes."""

    name: str
    model_type: str
    tokenizer: dict[str, Any]
    architecture: dict[str, Any]
    phases: tuple[Phase, ...]
    """Pretraining of the published weights, one after the other."""
    threads: int
    """CPU threads they were pretrained with."""


def sizes() -> list[str]:
    """Names of the packaged specifications of a pair, each a file among the recipes."""

    def is_one(tree: Mapping[str, Any]) -> bool:
        return all(isinstance(entry, dict) and "architecture" in entry for entry in tree.values())

    return packaged_names(is_one)


def load_specs(path: Path) -> dict[str, TinySpec]:
    """The pair's specification from YAML."""
    tree = strict_yaml.load_file(path)
    return {
        name: TinySpec(
            name=name, phases=tuple(_phase(**phase) for phase in entry.pop("phases")), **entry
        )
        for name, entry in tree.items()
    }


def _phase(*, hard_shape: Mapping[str, Any] | None = None, **entry: Any) -> Phase:
    if hard_shape is None:
        return Phase(**entry)
    shape: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in hard_shape.items()
    }
    return Phase(hard_shape=profiles_hard.Shape(**shape), **entry)


def build_tokenizer(spec: TinySpec, *, seed: int) -> PreTrainedTokenizerFast:
    """A lossless byte-level BPE tokenizer trained on profile prompts."""
    options = spec.tokenizer
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        if options["split_digits"]
        else byte_level
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token in (options["bos"], options["eos"], options["pad"]) if token]
    trainer = trainers.BpeTrainer(
        vocab_size=options["vocab_size"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=special,
        show_progress=False,
    )
    documents = (document(seed, "train", index, crowded=False) for index in range(2_000))
    tokenizer.train_from_iterator(_plain_texts(documents), trainer)
    if options["bos"]:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{options['bos']} $A",
            pair=f"{options['bos']} $A $B",
            special_tokens=[(options["bos"], tokenizer.token_to_id(options["bos"]))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=options["bos"],
        eos_token=options["eos"],
        pad_token=options["pad"],
        clean_up_tokenization_spaces=False,
        model_max_length=spec.architecture["max_position_embeddings"],
    )


def build_model(spec: TinySpec, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Any:
    """The model with fresh weights, from torch's random state.

    Args:
        more: further entries of the model's configuration.
    """
    config = AutoConfig.for_model(
        spec.model_type,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **spec.architecture,
        **more,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def _plain_texts(documents: Any) -> Any:
    for doc in documents:
        yield f"Context: {doc.context}"
        for example in doc.examples:
            yield f"\nQuestion: {example.question}\nAnswer: {example.answers[0]}"


def _pack(prompts: DecoderPrompts, doc: Document) -> tuple[list[int], list[int], list[int]]:
    """One document as (ids, positions, block): block 0 is the context, k its k-th question."""
    first = prompts.text(doc.examples[0])
    ids = [*first.before, *first.slot]
    positions = list(range(len(ids)))
    blocks = [0] * len(ids)
    start = len(ids)
    for number, example in enumerate(doc.examples, start=1):
        tokens = prompts.text(example)
        segment = [*tokens.after, *tokens.answer]
        ids += segment
        positions += range(start, start + len(segment))
        blocks += [number] * len(segment)
    return ids, positions, blocks


def _batch(
    prompts: DecoderPrompts, docs: list[Document], *, device: torch.device | None = None
) -> tuple[torch.Tensor, ...]:
    """Pads packed documents: ids, positions, mask [B, 1, T, T], labels, and the answers' mask.

    All but the mask are [B, T]. They are made on the CPU and moved to ``device``.
    """
    packed = [_pack(prompts, doc) for doc in docs]
    length = max(len(ids) for ids, _, _ in packed)
    ids = torch.full((len(docs), length), prompts.pad)
    positions = torch.zeros((len(docs), length), dtype=torch.long)
    blocks = torch.full((len(docs), length), -1)
    labels = torch.full((len(docs), length), _IGNORE)
    is_answer = torch.zeros((len(docs), length), dtype=torch.bool)
    for row, ((tokens, places, numbers), doc) in enumerate(zip(packed, docs, strict=True)):
        size = len(tokens)
        ids[row, :size] = torch.tensor(tokens)
        positions[row, :size] = torch.tensor(places)
        blocks[row, :size] = torch.tensor(numbers)
        end = 0
        # labels[t] is the token after t inside the same block; a question's first token has none.
        labels[row, : size - 1] = torch.where(
            blocks[row, 1:size] == blocks[row, : size - 1], ids[row, 1:size], _IGNORE
        )
        end = numbers.count(0)
        for example in doc.examples:
            parts = prompts.text(example)
            end += len(parts.after) + len(parts.answer)
            is_answer[row, end - 1 - len(parts.answer) : end - 1] = True
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = (blocks[:, :, None] == blocks[:, None, :]) | (blocks[:, None, :] == 0)
    visible = causal & same & (blocks[:, None, :] >= 0)
    visible |= torch.eye(length, dtype=torch.bool)
    mask = torch.zeros(visible.shape).masked_fill_(~visible, torch.finfo(torch.float32).min)
    tensors = (ids, positions, mask[:, None], labels, is_answer)
    return tensors if device is None else tuple(tensor.to(device) for tensor in tensors)


def _facts_range(progress: float) -> tuple[int, int]:
    """Curriculum: short documents first; the last half also goes beyond the evaluated sizes."""
    if progress < 0.08:
        return 1, 4
    if progress < 0.2:
        return 2, 8
    return 4, 13


def _learning_rate(progress: float, peak: float) -> float:
    warmup = 0.03
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def pretrain(
    spec: TinySpec,
    *,
    seed: int,
    steps: int | None = None,
    batch_documents: int | None = None,
    device: torch.device | None = None,
) -> tuple[Any, PreTrainedTokenizerFast]:
    """Trains one model of the pair from scratch and returns it with its tokenizer.

    Args:
        steps: of each phase, in place of the specification's own number.
        batch_documents: of each step, likewise.
        device: where it is trained, and left; None is the CPU.

    The same seed, steps and batch size on the CPU of the same machine give the same weights. A GPU
    starts from the same weights and reads the same documents, but sums in an order of its own.
    """
    torch.manual_seed(seed)
    # Sums over another number of threads come in another order, and would give other weights.
    threads_before = torch.get_num_threads()
    torch.set_num_threads(spec.threads)
    tokenizer = build_tokenizer(spec, seed=seed)
    model = build_model(spec, tokenizer).to(device)
    log.info("%s: %d parameters", spec.name, model.num_parameters())
    rng = random.Random(seed)
    for number, phase in enumerate(spec.phases, start=1):
        phase = phase if steps is None else replace(phase, steps=steps, until=None)
        phase = phase if batch_documents is None else replace(phase, documents=batch_documents)
        name = f"{spec.name}, phase {number}"
        for again in reversed(range(_MOST)):
            loss = train_phase(
                model, DecoderPrompts(tokenizer), phase, rng=rng, seed=seed, name=name
            )
            if phase.until is None or loss <= phase.until:
                break
            what_then = "once more" if again else "the next phase goes on from there"
            log.warning("%s: answer loss %.4f, not %g: %s", name, loss, phase.until, what_then)
    torch.set_num_threads(threads_before)
    return model.eval(), tokenizer


def train_phase(
    model: Any,
    prompts: DecoderPrompts,
    phase: Phase,
    *,
    rng: random.Random,
    seed: int,
    name: str,
) -> float:
    """Trains ``model`` for one phase, in place, on the device it is on.

    Args:
        rng: draws the documents.
        name: what the log calls it.

    Returns:
        The answer loss of its last steps, their mean, in nats per token.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=phase.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    start = time.perf_counter()
    last: deque[Tensor] = deque(maxlen=_LAST)
    for step in range(phase.steps):
        progress = step / phase.steps
        docs = _documents(phase, progress, rng=rng, seed=seed)
        ids, positions, mask, labels, is_answer = _batch(prompts, docs, device=model.device)
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(progress, phase.learning_rate)
        with _mixed_precision(model.device):
            logits = model(input_ids=ids, position_ids=positions, attention_mask=mask).logits
        # In fp32, also where the products of the forward were in bf16.
        logits = logits.float()
        losses = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORE, reduction="none"
        ).view_as(labels)
        plain = (labels != _IGNORE) & ~is_answer
        answer_loss = losses[is_answer].mean()
        last.append(answer_loss.detach())
        loss = answer_loss + _LM_WEIGHT * losses[plain].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0 or step + 1 == phase.steps:
            right = (logits.argmax(-1) == labels)[is_answer].float().mean()
            log.info(
                "%s: step %d/%d, answer loss %.4f, answer-token accuracy %.4f, %.0f s",
                name,
                step + 1,
                phase.steps,
                answer_loss.item(),
                right.item(),
                time.perf_counter() - start,
            )
    return torch.stack(list(last)).mean().item()


def _mixed_precision(device: torch.device) -> torch.autocast:
    """Products in bf16 on a GPU that has it; the weights and their updates stay in fp32."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=native)


def _documents(phase: Phase, progress: float, *, rng: random.Random, seed: int) -> list[Document]:
    """The training documents of one step."""
    num_hard = round(phase.hard_share * phase.documents)
    low, high = _facts_range(1.0 if num_hard else progress)
    plain = [
        document(
            seed,
            "train",
            rng.randrange(1 << 40),
            min_facts=low,
            max_facts=high,
            crowded=index % 2 == 0,
        )
        for index in range(phase.documents - num_hard)
    ]
    hard = [
        profiles_hard.document(seed, "train", rng.randrange(1 << 40), shape=phase.hard_shape)
        for _ in range(num_hard)
    ]
    return plain + hard


def save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes model and tokenizer in the Hugging Face layout, weights in safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def reading_accuracy(
    model: Any,
    tokenizer: Any,
    *,
    seed: int,
    split: Split = "test",
    num_documents: int = 200,
    hard: bool = False,
) -> dict[str, float]:
    """Exact match from text on held-out documents: overall and by kind of question.

    An answer counts when every token and the EOS after it is the model's own greedy choice. The
    model reads on the device it is on, in its own precision.

    Args:
        hard: on the harder profiles.
    """
    prompts = DecoderPrompts(tokenizer)
    right: dict[str, list[bool]] = {}
    for start in range(0, num_documents, 20):
        stop = min(start + 20, num_documents)
        make = profiles_hard.document if hard else document
        docs = [make(seed, split, index) for index in range(start, stop)]
        ids, positions, mask, labels, is_answer = _batch(prompts, docs, device=model.device)
        logits = model(input_ids=ids, position_ids=positions, attention_mask=mask).logits
        hit = logits.argmax(-1) == labels
        for row, doc in enumerate(docs):
            spans = hit[row][is_answer[row]].split(
                [len(prompts.text(example).answer) for example in doc.examples]
            )
            for example, span in zip(doc.examples, spans, strict=True):
                right.setdefault(example.kind, []).append(bool(span.all()))
    every = [value for values in right.values() for value in values]
    scores = {f"em_{kind}": sum(values) / len(values) for kind, values in right.items()}
    return {"em": sum(every) / len(every), **scores}
