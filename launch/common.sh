# shellcheck shell=bash
# What the scripts of this folder share; sourced by them, not run. They set `root` and `name` first.
#   LATENTWIRE_SKIP_SETUP=1  use .venv as it is: nothing is set up and nothing installed
#   NPROC            number of processes
#   OMP_NUM_THREADS  CPU threads in each process (default: the cores shared out evenly)

: "${root:?}" "${name:?}"
py=$root/.venv/bin/python

say() { printf '%s: %s\n' "$name" "$*" >&2; }
die() {
    say "error: $*"
    exit 2
}

set_up() {
    if [[ ${LATENTWIRE_SKIP_SETUP:-} == 1 ]]; then
        [[ -x $py ]] || die "LATENTWIRE_SKIP_SETUP=1, but there is no $py"
        return
    fi
    "$root/launch/setup.sh"
}

# Sets `nproc_per_node` to NPROC, or to $1 where it is not given.
choose_processes() {
    nproc_per_node=${NPROC:-$1}
    [[ $nproc_per_node =~ ^[1-9][0-9]*$ ]] ||
        die "NPROC must be a positive integer, not '$nproc_per_node'"
}

share_out_threads() {
    if [[ -z ${OMP_NUM_THREADS:-} ]]; then
        # An empty value would still be read by nproc.
        unset OMP_NUM_THREADS
        local cores threads
        cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN || echo 1)
        threads=$((cores / nproc_per_node))
        export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
    fi
    export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
}

# Replaces this script by the trainer; the arguments are the trainer's.
train() {
    # Port 0 takes a free port; --local-addr because the host's own name may not resolve.
    exec "$py" -m torch.distributed.run \
        --nnodes=1 --nproc-per-node="$nproc_per_node" \
        --rdzv-backend=c10d --rdzv-endpoint=localhost:0 --local-addr=localhost \
        -m latentwire.train "$@"
}

# Sets `num_gpus`. GPUs that are asked for and not there are an error, never a run on the CPU.
count_gpus() {
    local wanted=${CUDA_VISIBLE_DEVICES-all} asked
    num_gpus=0
    case $wanted in
    "" | -1 | none | None | NoDevFiles)
        export CUDA_VISIBLE_DEVICES=""
        say "CUDA_VISIBLE_DEVICES='$wanted': a run on the CPU"
        return
        ;;
    esac
    num_gpus=$("$py" -c 'import torch; print(torch.cuda.device_count())')
    if [[ $wanted == all ]]; then
        ((num_gpus)) || say "no GPU visible: a run on the CPU"
        return
    fi
    asked=$(tr ',' '\n' <<<"$wanted" | grep -c .)
    ((asked == num_gpus)) ||
        die "CUDA_VISIBLE_DEVICES=$wanted names $asked GPUs, and torch sees $num_gpus;" \
            "name those that are there, or run on the CPU with CUDA_VISIBLE_DEVICES=''"
}

# Installs the pin of each named package into .venv, unless that version is there already.
install_needed() {
    local package pin version
    for package in "$@"; do
        pin=$(sed -n "s/^\($package==[^; ]*\).*/\1/p" "$root/requirements.txt")
        [[ -n $pin ]] || die "this run needs $package, of which requirements.txt has no version"
        version=$("$py" -c '
import sys
from importlib import metadata
try:
    print(metadata.version(sys.argv[1]))
except metadata.PackageNotFoundError:
    print("none")' "$package")
        [[ $package==$version != "$pin" ]] || continue
        [[ ${LATENTWIRE_SKIP_SETUP:-} != 1 ]] ||
            die "this run needs $pin, and .venv has $version; LATENTWIRE_SKIP_SETUP=1 installs nothing"
        say "this run needs $pin, and .venv has $version: installing it into .venv"
        "$py" -m pip install -qq --disable-pip-version-check "$pin" ||
            die "$pin could not be installed into .venv"
    done
}

usage() {
    # The comment at the top of the calling script, without the first line and the marks.
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

# The runners' common part: run_wire DEFAULT_TAG NUM_DECODERS BASE_OVERRIDES... :: ARGUMENTS...
# NUM_DECODERS is also the number of processes on the CPU.
run_wire() {
    local tag=$1 num_decoders=$2 hero=() base=() recipe out line
    local overrides=() lists=() needs=()
    shift 2
    while [[ $1 != :: ]]; do
        base+=("$1")
        shift
    done
    shift
    while (($#)); do
        case $1 in
        --hero) hero=(--hero) ;;
        -h | --help)
            usage
            exit 0
            ;;
        --)
            shift
            break
            ;;
        *) die "unknown argument '$1'; arguments of the trainer go behind --, see --help" ;;
        esac
        shift
    done
    [[ ${#hero[@]} == 0 ]] || tag+=_hero

    set_up
    count_gpus
    if ((num_gpus)); then
        choose_processes "$num_gpus"
        recipe=squad_8b
        # By `latentwire plan` a deep prefix takes 136 GiB of a GPU without it, and 38 with it.
        base+=(decoders.llama.gradient_checkpointing=true)
        ((num_decoders == 1)) || base+=(decoders.qwen.gradient_checkpointing=true)
        [[ ${#hero[@]} == 0 ]] || base+=(train.stage_b.steps=60000)
    else
        choose_processes "$num_decoders"
        recipe=smoke
        if [[ ${#hero[@]} == 0 ]]; then base+=(train.stage_b.steps=300); else recipe=hero; fi
    fi
    # Checks the variables, and the whole configuration with the arguments behind --.
    out=$("$py" -m latentwire.cli from-env --recipe "$recipe" "${hero[@]+"${hero[@]}"}" \
        run.tag="$tag" "${base[@]+"${base[@]}"}" -- "$@") || exit 2
    while IFS= read -r line; do
        case $line in
        --list=*) lists+=("$line") ;;
        --needs=*) needs+=("${line#--needs=}") ;;
        *) overrides+=("$line") ;;
        esac
    done <<<"$out"
    install_needed "${needs[@]+"${needs[@]}"}"
    share_out_threads
    if ((${#lists[@]})); then
        exec "$py" -m latentwire.cli sweep --recipe "$recipe" --nproc "$nproc_per_node" \
            "${lists[@]}" "${overrides[@]}" "$@"
    fi
    train --recipe "$recipe" "${overrides[@]}" "$@"
}
