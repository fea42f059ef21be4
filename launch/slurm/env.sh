# shellcheck shell=bash
# What the batch scripts of this folder share: the site's environment, and a job's way from its first
# process to its end. Sourced by them on the first node of a job, not run.

# --- your site: what a job needs before Python starts, on every node -----------------------------
# module load cuda/12.8
# export HF_HOME=/scratch/$USER/huggingface HF_HUB_OFFLINE=1
# export SOCKET_IFNAME=ib0             # the network between nodes, where the default is another
# export MAX_RESTARTS=1                # torchrun's own restarts, inside one attempt of the job
# export LOG_DIR=/scratch/$USER/logs   # each rank's output, by job and attempt (default: logs)
# -------------------------------------------------------------------------------------------------

# From the first line on: an unhandled one would end the script, and with it the job.
asked='' cancelled=''
trap 'asked=1' USR1
trap 'cancelled=1' TERM

root=${LATENTWIRE_ROOT:-${SLURM_SUBMIT_DIR:?}}
name=slurm
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"
# Nodes must not set up one folder at the same time: that is done on the login node.
export LATENTWIRE_SKIP_SETUP=1
set_up

# Runs one torchrun a node and returns its code: run_job train|eval ARGUMENTS...
# A job that was preempted, or failed on the way, is queued again, and then nothing returns.
run_job() {
    local attempt=${SLURM_RESTART_COUNT:-0} code=0 nodes step='' sender='' began since
    since=$(date -u +%FT%T+00:00)
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    export NNODES=$SLURM_JOB_NUM_NODES HEAD_NODE=${nodes[0]}
    # Below the ports that systems hand out by themselves; another job on the node has another id.
    export RDZV_PORT=$((10000 + SLURM_JOB_ID % 20000)) RDZV_ID=$SLURM_JOB_ID.$attempt
    export LOG_DIR=${LOG_DIR:-logs}/$SLURM_JOB_ID/attempt-$attempt
    export NPROC=${NPROC:-${SLURM_GPUS_ON_NODE:-1}}
    # Sockets and files of many ranks; the soft limit is often 1024.
    ulimit -Sn "$(ulimit -Hn)" || true
    say "job $SLURM_JOB_ID, attempt $attempt: $NNODES nodes (${nodes[*]}), $NPROC processes each"

    # Steps do not take over a job's CPUs by themselves. One node's end with an error ends the
    # others, and one that ends well leaves them a while to end, too.
    srun --nodes="$NNODES" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
        --kill-on-bad-exit=1 --wait=300 "$root/launch/torchrun.sh" "$@" &
    step=$! began=$SECONDS
    while kill -0 "$step" 2>/dev/null; do
        if [[ -n $asked && -z $sender ]]; then
            say "asked to make way: the run saves and ends"
            # Not to a step that has just begun, whose shells would die of it; then again and again,
            # since a trainer that is still loading misses it.
            {
                while ((SECONDS - began < 5)); do sleep 1; done
                while kill -USR1 "$step" 2>/dev/null; do sleep 2; done
            } &
            sender=$!
        fi
        # A trapped signal ends it too, and then the step is still there.
        code=0
        wait "$step" || code=$?
    done
    [[ -z $sender ]] || kill "$sender" 2>/dev/null || true
    if [[ -n $cancelled ]]; then
        say "cancelled; the same command goes on from the last checkpoint"
        return "$code"
    fi
    if "$py" -m latentwire.cli slurm requeue --code "$code" --since "$since" "$@"; then
        scontrol requeue "$SLURM_JOB_ID" || die "job $SLURM_JOB_ID could not be queued again"
        # It is the end of this script.
        sleep 300
    fi
    return "$code"
}
