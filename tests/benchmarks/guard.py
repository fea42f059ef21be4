"""Whether the trainer is still as much faster than the plain loop as it was.

    python tests/benchmarks/guard.py [--update] [--only NAME ...]

Runs `latentwire bench --against naive` in a few settings, and compares each ratio with the one kept
in `ratios.json`; ends with 1 where one has fallen by more than a tenth. A ratio is of times that
were taken in turn, so it hardly depends on the machine. `--update` keeps the new ones.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
KEPT = Path(__file__).with_name("ratios.json")
SETTINGS = {
    "kd, cached teacher": ["teacher.cache=true"],
    "kd, live teacher": [],
    "no kd": ["objectives.kd=0"],
    "kd, whole vocabulary cached": ["teacher.cache=true", "teacher.top_k=0", "teacher.bits=32"],
}
LARGE_PAGES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=100000000000:glibc.malloc.top_pad=67108864"
)
"""Without it a CPU run gives large tensors back to the system and is given empty pages again, which
costs either loop what else the machine lets it cost."""
ALLOWED = 0.1
"""Part of a ratio that may be lost."""


def measured(arguments: list[str], more: list[str]) -> dict[str, Any]:
    """The figures of one setting."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.json"
        command = [sys.executable, "-m", "latentwire.bench", "--against=naive", f"--json={file}"]
        command += ["--steps=1", "--repeats=5"]
        env = {"GLIBC_TUNABLES": LARGE_PAGES, "OMP_NUM_THREADS": "1"} | os.environ
        subprocess.run([*command, *arguments, *more], cwd=ROOT, check=True, env=env)
        tree: dict[str, Any] = json.loads(file.read_text())
    return tree


def main() -> int:
    """Measures, compares, and returns 1 where a ratio has fallen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--only", nargs="*", default=[], choices=list(SETTINGS))
    options, more = parser.parse_known_args()
    kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    fallen = False
    for name in options.only or SETTINGS:
        tree = measured(SETTINGS[name], more)
        naive = tree["naive"]
        before = kept.get(name, {}).get("ratio")
        is_less = before is not None and naive["ratio"] < (1 - ALLOWED) * before
        fallen = fallen or is_less
        verdict = "FALLEN" if is_less else "new" if before is None else "held"
        was = "" if before is None else f", was {before:.2f}"
        print(f"{name}: {naive['ratio']:.2f} times the plain loop{was}: {verdict}", flush=True)
        if options.update or before is None:
            kept[name] = {
                "ratio": naive["ratio"],
                "predicted_ratio": naive["predicted_ratio"],
                "differences": naive["differences"],
                "prepared_seconds": tree["prepared_seconds"],
                "device": tree["device"],
                "torch": tree["torch"],
            }
            KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    return int(fallen)


if __name__ == "__main__":
    sys.exit(main())
