#!/usr/bin/env bash
# Trains or evaluates by torchrun, on one node or on several: the same command on each of them.
#   launch/torchrun.sh [train|eval] [--recipe NAME] [key=value ...]
#   NNODES         nodes of the run (default: 1)
#   NPROC          processes on this node, as many as on the others (default: its GPUs, or 1)
#   HEAD_NODE      name or address of one of the nodes, as all of them reach it; needed with several
#   RDZV_PORT      a port that is free there (default: 29500)
#   RDZV_ID        the job's name, so that nodes of another job are not taken for its own
#   RDZV_TIMEOUT   seconds to wait for the other nodes (default: 600)
#   NODE_ADDR      this node's address, where the others do not know its host name
#   SOCKET_IFNAME  network interface between the nodes, e.g. ib0 (default: the libraries' choice)
#   MAX_RESTARTS   how often all processes start again when one fails, from `latest` (default: 0)
#   LOG_DIR        each rank's output and errors go below it (default: logs)
#   OMP_NUM_THREADS  CPU threads in each process (default: the cores shared out evenly)
# Run and checkpoints must be on storage that all nodes share. There is no cd: relative paths stay
# relative to the caller's directory.
set -euo pipefail
# Schedulers send USR1 to every process of a job. The trainer takes it as the wish to save and end;
# this shell and torchrun, which have no use for it, would die. What is ignored here stays so until
# the trainer asks.
trap '' USR1

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
name=torchrun
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

module=(-m latentwire.train)
case ${1:-} in
-h | --help)
    usage
    exit 0
    ;;
train) shift ;;
eval) module=(-m latentwire.cli) ;;
esac

whole() { # whole NAME VALUE LOWEST
    if ! [[ $2 =~ ^[0-9]+$ ]] || (($2 < $3)); then
        die "$1 must be a whole number, $3 or more, not '$2'"
    fi
}

id=latentwire num_nodes=${NNODES:-1} port=${RDZV_PORT:-29500}
timeout=${RDZV_TIMEOUT:-600} max_restarts=${MAX_RESTARTS:-0}
whole NNODES "$num_nodes" 1
whole RDZV_PORT "$port" 1
# A process that hangs is killed 30 s after the others have ended; its node must not come too late.
whole RDZV_TIMEOUT "$timeout" 60
whole MAX_RESTARTS "$max_restarts" 0
((num_nodes == 1)) || [[ -n ${HEAD_NODE:-} ]] ||
    die "NNODES=$num_nodes needs HEAD_NODE, the name or address of one of the nodes"
set_up
num_gpus=0
[[ -n ${NPROC:-} ]] || count_gpus
choose_processes "$((num_gpus > 0 ? num_gpus : 1))"
share_out_threads

# A line is in the log when it is said, and a crash in C++ leaves every thread's stack there.
export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
# Batches differ in length: segments that grow leave fewer holes in a GPU's memory.
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}
# What NCCL calls an error is in the log. A collective past its timeout ends the process, without a
# clean-up that could hang as well; before that each rank writes down its last collectives.
log_dir=${LOG_DIR:-logs}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-3}
export TORCH_NCCL_DUMP_ON_TIMEOUT=1 TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-2000}
export TORCH_FR_DUMP_TEMP_FILE=$log_dir/flight_rank_
if [[ -n ${SOCKET_IFNAME:-} ]]; then
    export GLOO_SOCKET_IFNAME=$SOCKET_IFNAME NCCL_SOCKET_IFNAME=$SOCKET_IFNAME
fi
# Which rank said it; local ranks, torchrun's default, are the same on every node.
# shellcheck disable=SC2016  # torchrun fills it in
export TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE='[rank ${rank}] '

if ((num_nodes == 1)); then
    # Port 0 takes a free port; the host's own name may not resolve.
    rendezvous=(--rdzv-endpoint=localhost:0 --local-addr=localhost)
    # Of this command alone: its restarts know each other by it.
    id=latentwire-$$
else
    own=$(getent ahostsv4 "${NODE_ADDR:-$(hostname)}" | awk 'NR == 1 { print $1 }') || own=
    if [[ -z ${SOCKET_IFNAME:-} && $own == 127.* ]]; then
        say "this node's name stands for $own, which other nodes do not reach;" \
            "SOCKET_IFNAME=<interface> names the network between the nodes"
    fi
    # A node is given up after 6 missed signs of life of 5 s: a link that fails for 20 s may heal.
    rendezvous=(
        --rdzv-endpoint="$HEAD_NODE:$port"
        --rdzv-conf="join_timeout=$timeout,keep_alive_interval=5,keep_alive_max_attempt=6"
    )
    [[ -z ${NODE_ADDR:-} ]] || rendezvous+=(--local-addr="$NODE_ADDR")
    # With the store of the rendezvous shared, a lost node that comes back waits for an address that
    # is never written, and takes the others down with it.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
fi

mkdir -p "$log_dir"
exec "$py" -m torch.distributed.run \
    --nnodes="$num_nodes" --nproc-per-node="$nproc_per_node" \
    --rdzv-backend=c10d --rdzv-id="${RDZV_ID:-$id}" "${rendezvous[@]}" \
    --max-restarts="$max_restarts" --log-dir="$log_dir" --tee=3 "${module[@]}" "$@"
