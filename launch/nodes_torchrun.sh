#!/usr/bin/env bash
# Many machines by torchrun, run on each of them:
#   NODES=4 NODE_RANK=0 MASTER=node0 launch/nodes_torchrun.sh RECIPE [KEY=VALUE...] --run /shared/FOLDER [--dry-run]
#
# NODE_RANK counts from 0, MASTER is the machine with rank 0 (PORT=29500), GPUS=8 on each. The run folder is shared by all machines.

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_arguments "$@"
[[ -n ${NODES:-} && -n ${NODE_RANK:-} && -n ${MASTER:-} ]] || complain "set NODES, NODE_RANK (from 0) and MASTER (the machine with rank 0)"
[[ ${#RUN[@]} -gt 0 ]] || complain "--run FOLDER is needed: a folder that all machines see under one name"
check_machine
train_arguments
# -- because torchrun would take --run for an option of its own
launch torchrun --nnodes "$NODES" --node_rank "$NODE_RANK" --nproc_per_node "${GPUS:-8}" \
    --rdzv_backend c10d --rdzv_id "${RDZV_ID:-foveate}" --rdzv_endpoint "$MASTER:${PORT:-29500}" -m -- foveate "${TRAIN[@]}"
