#!/usr/bin/env bash
# One GPU:  launch/one_gpu.sh RECIPE [KEY=VALUE...] [--run FOLDER] [--resume | --fresh] [--dry-run]
#
# GPU=1 takes the second one; SKIP_DOCTOR=1 starts without looking at the machine. docs/launch.md has the rest.

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_arguments "$@"
if [[ -n ${GPU:-} ]]; then
    export CUDA_VISIBLE_DEVICES=$GPU
fi
check_machine
train_arguments
launch "${FOVEATE[@]}" "${TRAIN[@]}"
