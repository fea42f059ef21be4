#!/usr/bin/env bash
# Two decoders of two families on one wire: Stages A, B and C into runs/<RUN_TAG>/.
#   launch/run_scoped_softprompt_multi.sh [--hero] [-- arguments of the trainer ...]
#   --hero  trains anew, with a longer Stage B, into runs/<RUN_TAG>_hero/
# Without a GPU (CUDA_VISIBLE_DEVICES="") it is a run of minutes with the embedded pair, one process
# each; with GPUs a run of LLAMA_ID and QWEN_ID on SQuAD, one process a GPU: the first half holds one
# decoder, the second half the other (2+2 of four), or LLAMA_RANKS and QWEN_RANKS of them. Deep prefix
# and gist head are on. LATENT_LEN_LIST, D_Z_LIST, REFINER_LAYERS_LIST and REFINER_HEADS_LIST sweep
# their cross product. launch/README.md has every variable.
# There is no cd: relative paths stay relative to the caller's directory.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
name=run_scoped_softprompt_multi
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

run_wire scoped_softprompt 2 :: "$@"
