"""Two ranks with a decoder each, against one rank with both, and two such ranks on their own.

    python tests/benchmarks/placements.py [--steps 3] [--repeats 3] [--json FILE]

Every rank has one thread. Settings are measured in turn, the two ranks of the last at the same time
without knowing of each other: what they reach together is what the machine has for two ranks that
need not wait for one another.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def start(folder: Path, name: str, world: int, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Starts one measurement, which writes ``folder / name``."""
    launch = [sys.executable, "-m", "latentwire.bench"]
    if world > 1:
        launch = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc_per_node={world}", "-m", "latentwire.bench"),
        ]
    own = [f"--json={folder / name}", *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*launch, *own], cwd=ROOT, env=env, stdout=subprocess.DEVNULL)


def rate(process: subprocess.Popen[bytes], file: Path) -> tuple[float, dict[str, Any]]:
    """Examples a second of a measurement that was started."""
    if process.wait():
        raise SystemExit(f"a measurement ended with code {process.returncode}")
    tree: dict[str, Any] = json.loads(file.read_text())
    return float(tree["examples_per_second"]), tree


def main() -> None:
    """Prints one JSON object: medians, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    common = [f"--steps={options.steps}", "--repeats=2", "--warmup=1", *options.overrides]
    found: dict[str, list[float]] = {"colocated": [], "separate": [], "independent": []}
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            one = start(folder, "one", 1, [*common, "placement=colocated"])
            found["colocated"].append(rate(one, folder / "one")[0])
            two = start(folder, "two", 2, [*common, "placement=separate"])
            found["separate"].append(rate(two, folder / "two")[0])
            pair = [start(folder, side, 1, [*common, "placement=colocated"]) for side in ("a", "b")]
            rates = [rate(p, folder / side)[0] for p, side in zip(pair, "ab", strict=True)]
            found["independent"].append(sum(rates))
        print({key: round(values[-1], 3) for key, values in found.items()}, file=sys.stderr)
    ratios = {
        "separate / colocated": [
            a / b for a, b in zip(found["separate"], found["colocated"], strict=True)
        ],
        "separate / independent": [
            a / b for a, b in zip(found["separate"], found["independent"], strict=True)
        ],
    }
    tree = {
        "examples_per_second": {key: statistics.median(v) for key, v in found.items()},
        **{key: statistics.median(values) for key, values in ratios.items()},
        "runs": found,
    }
    text = json.dumps(tree, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
