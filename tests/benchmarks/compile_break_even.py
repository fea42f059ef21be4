"""What ``decoders.<name>.compile`` costs and saves: seconds to compile, and of a step.

    python tests/benchmarks/compile_break_even.py [--models tiny 30M] [--steps 10] [--repeats 5]

A step is what training does with a frozen decoder: the text teacher without gradients, then the
wire with them, and the way back. Lengths vary from step to step, so that whatever a new length
would compile is in the figures. Plain and compiled steps alternate. Seconds are of the processor on
a CPU, compilers included, since a machine is seldom alone; on a GPU of the clock.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from latentwire.data.batch import PrefixRow, PromptBatch, PromptRow, prompt_batch
from latentwire.decoders.compiled import compile_layers
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.decoders.recompute import recompute_layers
from latentwire.wire.unit import Injection

TINY = Path(__file__).parents[2] / "checkpoints" / "tiny" / "llama"
CONTEXTS, QUESTIONS = 4, 4


def model(name: str) -> LlamaForCausalLM:
    if name == "tiny":
        found: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(
            TINY, attn_implementation="sdpa"
        )
        return found
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=8192,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def batches(step: int, *, tokens: int) -> tuple[PromptBatch, PromptBatch, int]:
    """Text and wire of a step, at ratio 4, and the wire's length; all of a length of its own."""
    length = tokens - 5 * (step % 4)
    text, wire = [], []
    for index in range(CONTEXTS * QUESTIONS):
        after, answer = tuple(range(5, 15 + step % 3)), (5, 6, 7, 8, 1)
        context = index // QUESTIONS
        own = PrefixRow(before=(3, 4), slot=(5 + context,) * (length - context))
        soft = PrefixRow(before=(3, 4), soft_row=context, num_soft=length // 4 - context)
        text.append(PromptRow(prefix=own, after=after, answer=answer))
        wire.append(PromptRow(prefix=soft, after=after, answer=answer))
    return prompt_batch(text, pad=2), prompt_batch(wire, pad=2), length // 4


def one_step(decoder: FrozenDecoder, step: int, *, tokens: int) -> None:
    text, wire, length = batches(step, tokens=tokens)
    with torch.no_grad():
        decoder.answer(text.to(decoder.device))
    vectors = torch.randn(CONTEXTS, length, decoder.inputs.hidden_size, device=decoder.device)
    vectors = (decoder.inputs.rms * vectors).requires_grad_()
    said = decoder.answer(wire.to(decoder.device), Injection(vectors=vectors))
    said.logits.logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]


def seconds(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def timed(device: torch.device, run: Callable[[], None]) -> float:
    start = seconds(device)
    run()
    return seconds(device) - start


def compare(name: str, args: argparse.Namespace, device: torch.device) -> None:
    pair = {}
    for kind in ("plain", "compiled"):
        own = model(name).to(device).eval()
        if kind == "compiled":
            start = seconds(device)
            compile_layers(name, own, device=device)
            trying = seconds(device) - start
        if args.recomputed:
            recompute_layers(name, own)
        pair[kind] = FrozenDecoder(name, own, None)

    def steps(kind: str) -> Callable[[], None]:
        def run() -> None:
            for step in range(args.steps):
                one_step(pair[kind], step, tokens=args.tokens)

        return run

    one_step(pair["plain"], 0, tokens=args.tokens)
    first = timed(device, steps("compiled"))
    found: dict[str, list[float]] = {"plain": [], "compiled": []}
    for _ in range(args.repeats):
        for kind, times in found.items():
            times.append(timed(device, steps(kind)) / args.steps)
    plain, compiled = (statistics.median(times) for times in found.values())
    compiling = trying + first - args.steps * compiled
    saved = plain - compiled
    when = f"after {compiling / saved:,.0f} steps" if saved > 0 else "never"
    print(
        f"{name}: compiling {compiling:.1f} s; a step {plain:.4f} s plain, {compiled:.4f} s "
        f"compiled ({plain / compiled:.2f} times as fast); pays {when}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=("tiny", "30M"), default=["tiny", "30M"])
    parser.add_argument("--steps", type=int, default=4, help="in a measured run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128, help="of a context")
    parser.add_argument("--recomputed", action="store_true", help="with gradient_checkpointing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in args.models:
        # What was compiled before, by whatever process, is not there.
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
            torch._dynamo.reset()
            compare(name, args, device)


if __name__ == "__main__":
    main()
