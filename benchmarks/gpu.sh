#!/usr/bin/env bash
# CUDA in a few minutes, for a GPU that is at hand for a short time on a bare computer.
#
#   benchmarks/gpu.sh tests | steps | compiled | drawing | inference    one part
#   benchmarks/gpu.sh a                                                all of them, 150 s at most
#
# Logs and figures go to $OUT (runs/gpu); what is measured there already is not measured again.
# DEVICE=cpu TINY=1 PATIENCE=10 tries the script where there is no GPU: tiny, ten times as patient. PYTHON is the interpreter (python3).
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-$PWD/runs/gpu}
PYTHON=${PYTHON:-python3}
PATIENCE=${PATIENCE:-1}
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
mkdir -p "$OUT"
size=()
if [ -n "${TINY:-}" ]; then
    size=(--batch-sizes 1 2 --steps 1 --size 32 32 24 --scan 96 96 91)
fi
if [ -n "${DEVICE:-}" ]; then
    size+=(--device "$DEVICE")
fi

# part SECONDS NAME COMMAND...: runs it for so long at most; its log is OUT/NAME.log.
part() {
    local seconds=$1 name=$2 start=$SECONDS
    shift 2
    timeout -k 5 $((seconds * PATIENCE)) "$@" > "$OUT/$name.log" 2>&1
    printf '%s: exit %s, %s s\n' "$name" $? $((SECONDS - start)) >> "$OUT/parts.txt"
}

measure() {
    part "$1" "$2" "$PYTHON" benchmarks/gpu.py "$2" --output "$OUT" "${size[@]}" "${@:3}"
}

tests() {
    part 60 tests "$PYTHON" -m pytest -q -s -p no:cacheprovider --durations=5 \
        tests/training/test_cuda.py
}

steps() {
    measure 45 steps
    measure 25 profile
}

drawing() {
    local data=$OUT/../gpu_balls
    PYTHONPATH=tests:.${PYTHONPATH:+:$PYTHONPATH} part 20 balls "$PYTHON" -c \
        "import sys, pathlib, balls; balls.write_cohort(pathlib.Path(sys.argv[1]), 4)" "$data"
    measure 25 drawing --data "$data"
}

inference() {
    measure 60 inference
}

compiled() {
    measure 75 compiled
}

table() {
    printf '\n== parts\n'
    cat "$OUT/parts.txt"
    printf '== tests\n'
    grep -aE 'passed|failed|skipped|differ between|losses undisturbed|^(FAILED|ERROR|SKIPPED|E  )' \
        "$OUT/tests.log" 2> /dev/null
    printf '== measured\n'
    for name in steps compiled drawing inference; do
        tail -n 12 "$OUT/$name.log" 2> /dev/null
    done
    if [ -f "$OUT/profile.txt" ]; then
        printf '== kernels: profile.txt\n'
    fi
}

case ${1:-} in
    tests | steps | compiled | drawing | inference) "$1" ;;
    a)
        limit=$((SECONDS + 150 * PATIENCE))
        for name in tests steps drawing inference compiled; do
            if [ $SECONDS -lt $limit ]; then "$name"; fi
        done
        ;;
    *)
        sed -n '2,/^set/p' "$0" | grep '^#'
        exit 2
        ;;
esac
table
