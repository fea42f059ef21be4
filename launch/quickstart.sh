#!/usr/bin/env bash
# Sets up .venv, then trains the smoke recipe on this machine.
#   launch/quickstart.sh [--recipe NAME] [key=value ...]
#   NPROC            number of processes (default: 2)
#   OMP_NUM_THREADS  CPU threads in each process (default: the cores shared out evenly)
# There is no cd: relative paths in the arguments stay relative to the caller's directory.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
nproc_per_node=${NPROC:-2}
if ! [[ $nproc_per_node =~ ^[1-9][0-9]*$ ]]; then
    echo "quickstart: error: NPROC must be a positive integer, not '$nproc_per_node'" >&2
    exit 2
fi

"$root/launch/setup.sh"

if [[ -z ${OMP_NUM_THREADS:-} ]]; then
    # An empty value would still be read by nproc.
    unset OMP_NUM_THREADS
    cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN || echo 1)
    threads=$((cores / nproc_per_node))
    export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
fi
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}

# Port 0 takes a free port; --local-addr because the host's own name may not resolve.
# The user's arguments come last so that they win.
exec "$root/.venv/bin/python" -m torch.distributed.run \
    --nnodes=1 --nproc-per-node="$nproc_per_node" \
    --rdzv-backend=c10d --rdzv-endpoint=localhost:0 --local-addr=localhost \
    -m latentwire.train --recipe smoke run.tag=quickstart "$@"
