#!/usr/bin/env bash
# Many machines by DeepSpeed's launcher, run on one of them:
#   HOSTFILE=hosts launch/nodes_deepspeed.sh RECIPE [KEY=VALUE...] --run /shared/FOLDER [--dry-run]
#
# HOSTFILE has one line a machine, such as "node0 slots=8"; ssh (and pdsh) reach them without a password.
# PORT=29500. The run folder is shared by all machines.

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_arguments "$@"
[[ -n ${HOSTFILE:-} ]] || complain "set HOSTFILE: a file with lines such as 'node0 slots=8'"
[[ -r $HOSTFILE ]] || complain "$HOSTFILE: no such file; it has lines such as 'node0 slots=8'"
wrong=$(grep -nvE '^[[:space:]]*(#.*)?$|^[^[:space:]]+[[:space:]]+slots=[0-9]+[[:space:]]*(#.*)?$' "$HOSTFILE" || true)
[[ -z $wrong ]] || complain "$HOSTFILE: expected lines such as 'node0 slots=8', found $wrong"
[[ ${#RUN[@]} -gt 0 ]] || complain "--run FOLDER is needed: a folder that all machines see under one name"
check_machine
train_arguments
# --no_local_rank because it would put --local_rank=N before `train`; ranks read the environment
launch deepspeed --hostfile "$HOSTFILE" --master_port "${PORT:-29500}" --no_local_rank --module foveate "${TRAIN[@]}"
