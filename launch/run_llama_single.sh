#!/usr/bin/env bash
# One decoder: trains (Stages A and B) and evaluates (C) a wire into runs/<RUN_TAG>/.
#   launch/run_llama_single.sh [--hero] [-- arguments of the trainer ...]
#   --hero  trains anew, with a longer Stage B, into runs/<RUN_TAG>_hero/
# Without a GPU (CUDA_VISIBLE_DEVICES="") it is a run of minutes with the embedded model; with GPUs
# a run of LLAMA_ID on SQuAD, one process each. Deep prefix and gist head are on. LATENT_LEN_LIST,
# D_Z_LIST, REFINER_LAYERS_LIST and REFINER_HEADS_LIST sweep their cross product, a run each, into
# runs/<RUN_TAG>-<point>/ with a table in runs/<RUN_TAG>/. launch/README.md has every variable.
# There is no cd: relative paths stay relative to the caller's directory.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
name=run_llama_single
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

run_wire llama_single 1 decoders.qwen=null :: "$@"
