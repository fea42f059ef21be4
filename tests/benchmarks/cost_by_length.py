"""What a step costs by length: contexts, latents and answers, on made-up models of 30 M parameters.

    python tests/benchmarks/cost_by_length.py [--steps 2] [--repeats 2] [--json FILE]

The first table lengthens the contexts at a fixed number of latents, so that the decoders read the
same positions in every row; each of the others changes one number of the same setting. Every point
is a `latentwire bench` of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LATENTS = 32
SETTINGS: dict[str, dict[str, list[str]]] = {
    "context tokens, 32 latents": {
        str(tokens): [f"--context-tokens={tokens}", f"wire.ratio={tokens // LATENTS}"]
        for tokens in (64, 128, 256, 512, 1024)
    },
    "contexts a step": {
        str(number): ["--context-tokens=256", "wire.ratio=8", f"train.batch_size={4 * number}"]
        for number in (3, 6, 12)
    },
    "latents": {
        str(256 // ratio): ["--context-tokens=256", f"wire.ratio={ratio}"]
        for ratio in (16, 8, 4, 2)
    },
    "answer tokens": {
        str(number): ["--context-tokens=256", "wire.ratio=8", f"--answer-tokens={number}"]
        for number in (4, 8, 16, 32)
    },
}
COLUMNS = ("encoder forward", "decoders forward", "decoders backward", "encoder backward")


def point(arguments: list[str], steps: int, repeats: int) -> dict[str, Any]:
    """One measurement."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.json"
        command = [sys.executable, "-m", "latentwire.bench", "objectives.kd=0", "--warmup=1"]
        command += [f"--steps={steps}", f"--repeats={repeats}", f"--json={file}"]
        if not any(text.startswith("train.batch_size") for text in arguments):
            command.append("train.batch_size=12")
        subprocess.run([*command, *arguments], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        tree: dict[str, Any] = json.loads(file.read_text())
    return tree


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], choices=list(SETTINGS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for name, points in SETTINGS.items():
        if options.only and name not in options.only:
            continue
        print(f"| {name} | {' s | '.join(COLUMNS)} s | step s |")
        print("|---" * (len(COLUMNS) + 2) + "|", flush=True)
        for label, arguments in points.items():
            tree = point(arguments, options.steps, options.repeats)
            found.setdefault(name, {})[label] = tree
            cells = [f"{tree['phases'][column]:.3f}" for column in COLUMNS]
            row = " | ".join([label, *cells, f"{tree['step_seconds']:.3f}"])
            print(f"| {row} |", flush=True)
        print(flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
