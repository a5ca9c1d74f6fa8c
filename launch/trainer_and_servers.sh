#!/usr/bin/env bash
# vLLM servers on some GPUs of a machine, the trainer on the others:
#   TRAINER_GPUS=0,1,2,3 SERVER_GPUS=4,5,6,7 launch/trainer_and_servers.sh RECIPE [KEY=VALUE...] [--run FOLDER] [--dry-run]
#
# One server a GPU, or one for each TENSOR_PARALLEL=2 of them. MODEL: what they start with (default: the recipe's model).
# PORT=8000 and those after it; WEIGHTS=/dev/shm/foveate-weights is where new weights are handed over; SERVER_OPTIONS go to vLLM.

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_arguments "$@"
[[ -n ${TRAINER_GPUS:-} && -n ${SERVER_GPUS:-} ]] || complain "set TRAINER_GPUS and SERVER_GPUS, such as 0,1,2,3 and 4,5,6,7"
IFS=, read -ra trainers <<< "$TRAINER_GPUS"
IFS=, read -ra servers <<< "$SERVER_GPUS"
for gpu in "${servers[@]}"; do
    [[ " ${trainers[*]} " != *" $gpu "* ]] || complain "GPU $gpu is in TRAINER_GPUS and in SERVER_GPUS; it can be in one"
done
width=${TENSOR_PARALLEL:-1} port=${PORT:-8000} weights=${WEIGHTS:-/dev/shm/foveate-weights}
((${#servers[@]} % width == 0)) || complain "${#servers[@]} GPUs for servers are no multiple of TENSOR_PARALLEL=$width"
model=${MODEL:-}
if [[ -z $model ]]; then
    model=$("${FOVEATE[@]}" recipes show "$RECIPE" ${OVERRIDES[@]+"${OVERRIDES[@]}"} | awk '/^ *model:/ {inside = 1; next} inside && /^ *name:/ {print $2; exit}')
fi
[[ -n $model ]] || complain "$RECIPE names no model; set MODEL"
read -ra options <<< "${SERVER_OPTIONS:-}"

SERVERS=() urls=()
end_servers() {
    ((${#SERVERS[@]})) || return 0
    say "ending ${#SERVERS[@]} servers"
    kill -s TERM "${SERVERS[@]}" 2> /dev/null || true
    wait "${SERVERS[@]}" 2> /dev/null || true
}
trap end_servers EXIT
for ((first = 0; first < ${#servers[@]}; first += width)); do
    gpus=$(IFS=,; echo "${servers[*]:first:width}")
    command=("$PYTHON" -m foveate.vlm.serve_vllm "$model" --port "$((port + first / width))")
    ((width == 1)) || command+=(--tensor-parallel-size "$width")
    command+=(${options[@]+"${options[@]}"})
    say "CUDA_VISIBLE_DEVICES=$gpus $(quoted "${command[@]}")"
    urls+=("http://127.0.0.1:$((port + first / width))")
    if ((!DRY_RUN)); then
        CUDA_VISIBLE_DEVICES=$gpus "${command[@]}" &
        SERVERS+=($!)
    fi
done
OVERRIDES+=("engine={kind: vllm-server, urls: [$(IFS=,; echo "${urls[*]}")], folder: $weights}")
export CUDA_VISIBLE_DEVICES=$TRAINER_GPUS
say "CUDA_VISIBLE_DEVICES=$TRAINER_GPUS for what follows"
((DRY_RUN)) || mkdir -p "$weights"
check_machine
train_arguments
if ((${#trainers[@]} == 1)); then
    launch "${FOVEATE[@]}" "${TRAIN[@]}"
else
    launch torchrun --standalone --nproc_per_node "${#trainers[@]}" -m -- foveate "${TRAIN[@]}"
fi
