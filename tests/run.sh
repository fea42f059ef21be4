#!/usr/bin/env bash
# Sets up .venv, then runs the tests: the short tier, or everything with --all.
#   tests/run.sh [--all] [pytest arguments ...]
# Two tests run at a time; -n 0 runs one after the other, as debuggers need it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
tier=(-m "not slow")
args=()
for arg in "$@"; do
    if [[ $arg == --all ]]; then tier=(); else args+=("$arg"); fi
done

"$root/launch/setup.sh"

# One thread each: tests start several processes on few cores.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONFAULTHANDLER=1
cd "$root"
exec .venv/bin/python -m pytest -n 2 --dist worksteal --durations=20 "${tier[@]+"${tier[@]}"}" "${args[@]+"${args[@]}"}"
