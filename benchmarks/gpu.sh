#!/usr/bin/env bash
# CUDA in a few minutes, for a GPU that is at hand for a short time on a bare computer.
#
#   benchmarks/gpu.sh tests | steps | drawing | inference | compiled    one part
#   benchmarks/gpu.sh a                     all of them, 150 s at most
#   benchmarks/gpu.sh b                     a cohort drawn on all cores, and a training that follows it
#   benchmarks/gpu.sh pack [ANATOMY]        what that computer lacks, into runs/carry
#
# Logs and figures go to $OUT (runs/gpu); what is measured there already is not measured again.
#   PYTHON    the interpreter (python3)
#   LIMIT     seconds that `b` may take in all (570)
#   CARRY     folder of `pack`, whose packages are to be used
#   DEVICE=cpu TINY=1 PATIENCE=10    tries the script without a GPU: tiny, ten times as patient
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-$PWD/runs/gpu}
PYTHON=${PYTHON:-python3}
PATIENCE=${PATIENCE:-1}
export PYTHONUNBUFFERED=1 IGL_NUM_THREADS=1
mkdir -p "$OUT"
if [ -n "${CARRY:-}" ]; then
    site=$(mktemp -d)
    "$PYTHON" -W ignore -m tarfile -e "$CARRY/site.tar.xz" "$site" > /dev/null
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
size=()
if [ -n "${TINY:-}" ]; then
    size=(--batch-sizes 1 2 --steps 1 --size 32 32 24 --scan 96 96 91)
fi
if [ -n "${DEVICE:-}" ]; then
    size+=(--device "$DEVICE")
fi

# part SECONDS NAME COMMAND...: runs it for so long at most.
part() {
    local seconds=$1 name=$2 start=$SECONDS code
    shift 2
    printf '\n==== %s\n' "$name" >> "$OUT/log.txt"
    timeout -k 5 $((seconds * PATIENCE)) "$@" >> "$OUT/log.txt" 2>&1
    code=$?
    printf '%s: exit %s after %s s\n' "$name" "$code" $((SECONDS - start)) >> "$OUT/parts.txt"
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

# Without SimpleITK, which is too large: nothing that runs here reads or writes an image file.
pack() {
    local work carry=runs/carry
    work=$(mktemp -d)
    mkdir -p "$carry" "$work/site"
    grep -hE '^(monai|pydicom|tyro|libigl)==' requirements.txt requirements-anatomy.txt \
        > "$work/names"
    printf 'docstring-parser\ntypeguard\n' >> "$work/names"
    "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
        --dest "$work" --requirement "$work/names" || return 1
    for wheel in "$work"/*.whl; do
        "$PYTHON" -m zipfile -e "$wheel" "$work/site"
    done
    rm -rf "$work"/site/{include,lib64,share}
    cat > "$work/site/SimpleITK.py" << 'END'
"""Stands where SimpleITK is absent: it can be imported, and any use says so."""


def __getattr__(name: str):
    raise AttributeError(f"SimpleITK.{name}: SimpleITK is not here")
END
    tar c -C "$work/site" . | xz -9e > "$carry/site.tar.xz"
    if [ -n "${1:-}" ]; then
        slim "$1" "$work/anatomy" && tar c -C "$work/anatomy" . | xz -9e > "$carry/anatomy.tar.xz"
    fi
    rm -rf "$work"
    ls -l "$carry"
}

# Surfaces without normals; the label maps' femurs as surfaces, too.
slim() {
    PYTHONPATH=. "$PYTHON" - "$1" "$2" << 'END'
import sys
from pathlib import Path

import igl

from multipass.phantom.anatomy import femurs
from multipass.phantom.anatomy.surface import read_surface

source, target = map(Path, sys.argv[1:])


def write(path, surface):
    path.parent.mkdir(parents=True, exist_ok=True)
    igl.write_triangle_mesh(str(path), *surface, igl.FileEncoding.Binary)


for path in sorted(source.rglob("*.ply")):
    write(target / path.relative_to(source), read_surface(path))
for path in sorted(source.glob("labelmaps/*_structures.nii.gz")):
    person = path.name.removesuffix("_structures.nii.gz")
    for side, *surface in femurs._in_label_map(path):
        write(target / "femur" / f"{person}_{side}_femur.ply", surface)
END
}

# What is best so far lies in OUT at any time: a run that is killed has not been for nothing.
b() {
    local work cohort run started=$SECONDS limit=${LIMIT:-570} cores drawn minutes training
    work=$(mktemp -d)
    cohort=$work/cohort run=$work/run
    mkdir -p "$work/anatomy" "$run"
    "$PYTHON" -W ignore -m tarfile -e "$CARRY/anatomy.tar.xz" "$work/anatomy" > /dev/null
    cores=$(($(nproc) > 4 ? $(nproc) - 3 : 1))
    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 nice "$PYTHON" -m multipass.phantom --files \
        --output "$cohort" --anatomy "$work/anatomy" --part train --size "${SIZE:-any}" \
        --patients "${PATIENTS:-2000}" --seed "${SEED:-9000}" --matrix "${MATRIX:-320}" \
        --jobs "$cores" > "$OUT/drawing.log" 2>&1 &
    drawn=$!
    until [ "$(find "$cohort" -name 'Patient_*.pkl' 2> /dev/null | wc -l)" -ge "${FIRST:-26}" ]; do
        sleep 1
        kill -0 "$drawn" || return 1
    done
    minutes=$("$PYTHON" -c "print(($limit - $((SECONDS - started)) - ${SPARE:-75}) / 60)")
    printf 'drawn first: %s s; training: %s minutes\n' $((SECONDS - started)) "$minutes" \
        >> "$OUT/parts.txt"
    # shellcheck disable=SC2086
    TQDM_MININTERVAL=60 timeout $((limit - SECONDS + started - 15)) "$PYTHON" training.py \
        --data "$cohort" --dicom "$work/none" \
        --output "$run" --name gpu --follow --epochs 1000 --minutes "$minutes" --folds 5 \
        --steps-per-epoch "${STEPS:-100}" --batch-size "${BATCH:-8}" --coarse "${COARSE:-0.25}" \
        --augmentation 0.3 --ema 0.995 ${TRAINING:-} > "$OUT/training.log" 2>&1 &
    training=$!
    if command -v nvidia-smi > /dev/null; then
        nvidia-smi -l 10 --format=csv,noheader --query-gpu=utilization.gpu,memory.used \
            > "$OUT/use.csv" &
        drawn="$drawn $!"
    fi
    while kill -0 "$training" 2> /dev/null; do
        sleep 5
        bring_back "$run"
    done
    wait "$training"
    printf 'training: exit %s\n' $? >> "$OUT/parts.txt"
    bring_back "$run"
    # shellcheck disable=SC2086
    kill $drawn 2> /dev/null
    printf 'patients drawn: %s\n' "$(find "$cohort" -name 'Patient_*.pkl' | wc -l)" \
        >> "$OUT/parts.txt"
    tr '\r' '\n' < "$OUT/training.log" | grep -a '^epoch [0-9]*: ' | tail -n 30
    tail -n 12 "$OUT/training.log"
    if [ -f "$OUT/use.csv" ]; then
        sort -n "$OUT/use.csv" | awk '{ row[NR] = $0 } END { print "GPU, median use: " row[int((NR + 1) / 2)] }'
    fi
}

# The best network, in 16 bits as it would ship, and the curves, where they are new.
bring_back() {
    if [ "$1/best_model.pth" -nt "$OUT/best_model.pth" ]; then
        cp -p "$1/best_model.pth" "$1/taken.pth"
        CUDA_VISIBLE_DEVICES='' OMP_NUM_THREADS=1 "$PYTHON" -m multipass.model.publish \
            "$1/taken.pth" "$1/half.pth" --description "synthetic scans" > /dev/null \
            && touch -r "$1/taken.pth" "$1/half.pth" && cp -p "$1/half.pth" "$OUT/best_model.pth"
    fi
    cp "$1"/runs/gpu/{history.csv,curves.png,config.json} "$OUT" 2> /dev/null
}

table() {
    printf '\n'
    cat "$OUT/parts.txt"
    grep -aE '[0-9] (passed|failed|skipped)|differ between|losses undisturbed|^(FAILED|SKIPPED|E  )' \
        "$OUT/log.txt" 2> /dev/null
    grep -aE '^(step|drawing|scan) |^gpu.py: |: failed, ' "$OUT/log.txt" 2> /dev/null
}

case ${1:-} in
    pack)
        pack "${@:2}"
        exit
        ;;
    tests | steps | compiled | drawing | inference | b) "$1" ;;
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
