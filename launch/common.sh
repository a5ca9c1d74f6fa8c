# shellcheck shell=bash
# What the launch scripts share; they source it. It changes nothing by itself but the shell's strictness.
#
#   read_arguments "$@"   splits the command line: recipe, KEY=VALUE, options of foveate train, and --dry-run, which is ours
#   check_machine         foveate doctor RECIPE, unless SKIP_DOCTOR=1; a red line ends the launch with the doctor's status
#   launch COMMAND...     prints the command, runs it, hands SIGTERM on to the training processes, keeps their exit status

set -euo pipefail

DRY_RUN=0
RECIPE=""
OVERRIDES=() # KEY=VALUE
RUN=()       # --run FOLDER
OPTIONS=()   # --resume, --fresh, --redo STAGE

usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

read_arguments() {
    while (($#)); do
        case $1 in
            -h | --help) usage; exit 0 ;;
            --dry-run) DRY_RUN=1 ;;
            --run) RUN=(--run "${2:?--run needs a folder}"); shift ;;
            --run=*) RUN=(--run "${1#--run=}") ;;
            --redo) OPTIONS+=(--redo "${2:?--redo needs a stage}"); shift ;;
            --*) OPTIONS+=("$1") ;;
            *=*) OVERRIDES+=("$1") ;;
            *)
                if [[ -n $RECIPE ]]; then
                    complain "two recipes: $RECIPE and $1; changes are written KEY=VALUE"
                fi
                RECIPE=$1
                ;;
        esac
        shift
    done
    [[ -n $RECIPE ]] || complain "no recipe; give a name (foveate recipes) or a YAML file"
}

say() {
    printf '[launch] %s\n' "$*" >&2
}

complain() {
    say "$(basename "$0"): $*"
    exit 2
}

# The command as it can be pasted into a shell.
quoted() {
    local text
    printf -v text '%q ' "$@"
    printf '%s' "${text% }"
}

# `foveate` where it is installed, else the environment that make has set up here, else the module of this checkout.
ENVIRONMENT=$(dirname "${BASH_SOURCE[0]}")/../.venv/bin
if ! command -v foveate > /dev/null && [[ -x $ENVIRONMENT/foveate ]]; then
    PATH=$(cd "$ENVIRONMENT" && pwd):$PATH
fi
PYTHON=${PYTHON:-$(command -v python || command -v python3 || echo python)}
if command -v foveate > /dev/null; then
    FOVEATE=(foveate)
else
    FOVEATE=("$PYTHON" -m foveate)
fi

# What follows `foveate`, in TRAIN.
train_arguments() {
    # shellcheck disable=SC2034
    TRAIN=(train "$RECIPE" ${OVERRIDES[@]+"${OVERRIDES[@]}"} ${RUN[@]+"${RUN[@]}"} ${OPTIONS[@]+"${OPTIONS[@]}"})
}

check_machine() {
    local command=("${FOVEATE[@]}" doctor "$RECIPE" ${OVERRIDES[@]+"${OVERRIDES[@]}"} ${RUN[@]+"${RUN[@]}"})
    if [[ ${SKIP_DOCTOR:-0} == 1 ]]; then
        say "the machine is not checked (SKIP_DOCTOR=1)"
        return
    fi
    say "$(quoted "${command[@]}")"
    ((DRY_RUN)) && return
    local status=0
    "${command[@]}" || status=$?
    if ((status)); then
        say "the doctor found a red line (status $status): mend it, or set SKIP_DOCTOR=1 to start all the same"
        exit "$status"
    fi
}

# Training processes below $1: those that run `foveate train` and have no such process below them; $1 itself where there is none.
# Launchers kill their workers 30 s after a SIGTERM of their own, too soon for a large checkpoint: so the workers are told, not they.
workers_of() {
    ps -A -o pid= -o ppid= -o args= | awk -v root="$1" '
        { pid = $1; parent[pid] = $2; $1 = $2 = ""; train[pid] = ($0 ~ /foveate(\/__main__\.py)? train( |$)/) }
        function below(pid,   up) { for (up = pid; up in parent && up != root; up = parent[up]); return up == root }
        END {
            for (pid in parent) if (train[pid] && pid != root && below(pid)) { found[pid] = 1; above[parent[pid]] = 1 }
            for (pid in found) if (!(pid in above)) { print pid; some = 1 }
            if (!some) print root
        }'
}

launch() {
    say "$(quoted "$@")"
    ((DRY_RUN)) && return
    set -m # in a process group of its own: Ctrl-C comes here alone, and is handed on like SIGTERM
    "$@" &
    CHILD=$!
    set +m
    trap 'HANDED=1; hand_on TERM' TERM
    trap 'HANDED=1; hand_on INT' INT
    local status asked=0
    while :; do
        HANDED=0 status=0
        wait "$CHILD" || status=$?
        asked=$((asked | HANDED))
        ((HANDED)) || break # else `wait` came back for the signal, and the checkpoint is still being written
    done
    trap - TERM INT
    # torchrun says 1 whatever its workers said
    if ((asked && status == 1)) && [[ $1 != "${FOVEATE[0]}" ]]; then
        status=130
    fi
    return "$status"
}

hand_on() {
    local worker
    for worker in $(workers_of "$CHILD"); do
        say "SIG$1 is handed on to process $worker, which finishes its step and saves a checkpoint"
        kill -s TERM "$worker" 2> /dev/null || true
    done
}
