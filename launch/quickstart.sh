#!/usr/bin/env bash
# Sets up .venv, then trains the smoke recipe on this machine.
#   launch/quickstart.sh [--recipe NAME] [key=value ...]
#   NPROC            number of processes (default: 2; 1 on a machine with one GPU)
#   OMP_NUM_THREADS  CPU threads in each process (default: the cores shared out evenly)
# There is no cd: relative paths in the arguments stay relative to the caller's directory.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
name=quickstart
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

set_up
count_gpus
choose_processes "$((num_gpus == 1 ? 1 : 2))"
share_out_threads
# The user's arguments come last so that they win.
train --recipe smoke run.tag=quickstart "$@"
