#!/usr/bin/env bash
# The GPUs of one machine:  launch/eight_gpus.sh RECIPE [KEY=VALUE...] [--run FOLDER] [--resume | --fresh] [--dry-run]
#
# GPUS=4 for another number than 8. How the processes share the model, and with what they sample, is said as changes to the recipe:
# distributed.zero=2 (or 3, from 7B on) and engine.kind=vllm. Recipes in recipes/paper name theirs in their heads.

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_arguments "$@"
check_machine
train_arguments
# -- because torchrun would take --run for an option of its own
launch torchrun --standalone --nproc_per_node "${GPUS:-8}" -m -- foveate "${TRAIN[@]}"
