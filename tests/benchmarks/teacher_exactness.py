"""How near a cached teacher is to the live one, by the tokens and bits that are kept of it.

    python tests/benchmarks/teacher_exactness.py [--decoder checkpoints/tiny/llama] [--examples 120]
        [--temperature 1] [--top-k 1 4 16 64 256 0] [--bits 16 32]

The student is the same decoder reading half of each context, where it knows some answers and others
not. Distributions go through the files, as a run's do. Differences are of ``kd`` per answer token,
and of its gradient at a token's logits, largest over all of them (a softmax less another one: none
of its numbers is above 1). Seconds are those of reading the texts and of writing the files.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from latentwire.config import DecoderConfig
from latentwire.data.example import Example
from latentwire.data.loader import text_batch
from latentwire.data.prompts import DecoderPrompts
from latentwire.data.sources import open_source
from latentwire.decoders.loading import load_decoder
from latentwire.decoders.teacher import Form, prompt_id, read_text
from latentwire.decoders.teacher_cache import TeacherCache
from latentwire.decoders.teacher_shards import make_layout, open_shard, write_shard
from latentwire.objectives.distillation import kd_cached, kd_rows

_BATCH = 12


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    decoder = load_decoder(
        "decoder", DecoderConfig(model=options.decoder), dtype=torch.float32, device=device
    )
    prompts = DecoderPrompts(decoder.tokenizer, window=decoder.window)
    source = open_source(source="profiles", path=None, setting=None, split="train", seed=0)
    examples: list[Example] = []
    for document in range(options.examples):
        examples += source.examples(document)[:6]
    examples = examples[: options.examples]
    start = time.perf_counter()
    taught = _logits(decoder, prompts, examples, share=1.0)
    reading = time.perf_counter() - start
    said = _logits(decoder, prompts, examples, share=0.5)
    live, live_grad = _with_gradient(said, kd_rows, taught, temperature=options.temperature)
    print(
        f"{options.decoder}: {len(examples)} examples, {len(said)} answer tokens, vocabulary "
        f"{said.shape[-1]}; texts read in {reading:.1f} s; temperature {options.temperature:g}; "
        f"KL to the live teacher {live.mean():.6f} nats a token"
    )
    print("| top_k | bits | KL, cached | live - cached | largest gradient difference | bytes | s |")
    print("|---|---|---|---|---|---|---|")
    for top_k in options.top_k:
        for bits in options.bits:
            form = Form(top_k=top_k, bits=bits, temperature=options.temperature)
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                cache = _written(Path(folder), form, prompts, examples, taught, device)
                seconds = time.perf_counter() - start
                kept = cache.find(examples)
            assert kept is not None
            rows, grad = _with_gradient(
                said,
                kd_cached,
                kept.ids,
                kept.log_probs,
                kept.log_tail,
                temperature=options.temperature,
            )
            difference = float((live - rows).mean())
            print(
                f"| {top_k or 'all'} | {bits} | {rows.mean():.6f} | {difference:.1e} | "
                f"{float((live_grad - grad).abs().max()):.1e} | "
                f"{cache.num_bytes / cache.num_rows:,.0f} | {seconds:.2f} |"
            )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--decoder", default="checkpoints/tiny/llama")
    parser.add_argument("--examples", type=int, default=120)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, nargs="+", default=[1, 4, 16, 64, 256, 0])
    parser.add_argument("--bits", type=int, nargs="+", choices=(16, 32), default=[16, 32])
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def _logits(
    decoder: object, prompts: DecoderPrompts, examples: list[Example], *, share: float
) -> Tensor:
    """[answer tokens, vocabulary] after the first ``share`` of each context."""
    found = []
    for first in range(0, len(examples), _BATCH):
        tokens = [
            prompts.text(example, context=example.context[: int(share * len(example.context))])
            for example in examples[first : first + _BATCH]
        ]
        found.append(read_text(decoder, text_batch(tokens, pad=prompts.pad)).logits)  # type: ignore[arg-type]
    return torch.cat(found)


def _with_gradient(
    said: Tensor, loss: object, *against: object, temperature: float
) -> tuple[Tensor, Tensor]:
    """A loss of each row, and the gradient of each row's loss at its own logits."""
    student = said.clone().requires_grad_()
    rows: Tensor = loss(student, *against, temperature=temperature)  # type: ignore[operator]
    (grad,) = torch.autograd.grad(rows.sum(), student)
    return rows.detach(), grad


def _written(
    folder: Path,
    form: Form,
    prompts: DecoderPrompts,
    examples: list[Example],
    taught: Tensor,
    device: torch.device,
) -> TeacherCache:
    layout, _ = make_layout(form, vocabulary=taught.shape[-1], decoder={})
    tokens = [prompts.text(example) for example in examples]
    ids = [prompt_id(each) for each in tokens]
    lengths = [len(each.answer) for each in tokens]
    name = write_shard(folder, layout, ids, lengths, layout.form.of(taught))
    cache = TeacherCache(folder, layout, device=device)
    cache.add(open_shard(folder / name, layout))
    cache.remember(zip(examples, ids, strict=True))
    return cache


if __name__ == "__main__":
    main()
