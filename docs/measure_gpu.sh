#!/usr/bin/env bash
# Measures what docs/performance.md has a table for, on one GPU, in under ten minutes:
#
#     docs/measure_gpu.sh OUT
#
# OUT is a folder for the JSON files and logs. In the environment:
#
#     REFERENCE     a checkout of github.com/antonschafer/xling-imbalance to time in turn with ours
#     TORCH_PYTHON  the Python that has PyTorch, munch, psutil and sentencepiece (python3)
#     TINY=1        sizes that any machine runs, to try the script out: two minutes on two cores
#
# `python3` is the one that has this package: activate its environment first.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?"Say where to write: docs/measure_gpu.sh OUT"}
mkdir -p "$out"
# A run sets most of the memory aside itself; this leaves the rest to cuDNN and PyTorch.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}

if [[ ${TINY:-} ]]; then
    table=(demo:2:8 "demo:10:8" "gpt2:1:1 model.L=32 model.N=1")
    choices=("demo:2:8 model.attention=einsum" "demo:2:8 model.scan_layers=True")
    compared=demo:2:8
    reference=(--dtype=float32)
    seconds=0.2 steps=2
else
    table=(mini:2:128 small:2:128 small:10:128 gpt2:1:64 medium:2:64)
    choices=(
        "small:2:128 model.scan_layers=False"
        "small:2:128 model.remat=none"
        "gpt2:1:64 model.scan_layers=False"
        "mini:2:128 model.scan_layers=False"
        "small:2:128 model.scan_layers=False model.loss_chunk=128"
        "small:10:128 model.scan_layers=False model.loss_chunk=64"
        "small:2:128 model.attention=fused"
    )
    compared=small:2:64
    reference=(--dtype=float16 --compile --flash)
    seconds=5 steps=20
fi

# part NAME LIMIT COMMAND: one command that takes --out, with its output beside its figures.
part() {
    local name=$1 limit=$2
    shift 2
    timeout --foreground "$limit" python3 "$@" --out="$out/$name.json" 2>&1 | tee "$out/$name.log"
}

trap 'kill $(jobs -p) 2> /dev/null' EXIT
nvidia-smi > "$out/nvidia-smi.log" 2>&1 || echo "There is no nvidia-smi: is this a GPU?"
cases=()
for case in "${table[@]}"; do cases+=("--case=$case"); done
part table 300 -m imbalance_jax.bench --deadline=200 --seconds="$seconds" "${cases[@]}"
if [[ ${REFERENCE:-} ]]; then
    # With half of the memory each would be too little for either: they take turns.
    program="${TORCH_PYTHON:-python3} docs/measure_peers/xling_imbalance.py"
    part against 150 docs/measure_peers/compare.py --case="$compared" --rounds=1 --steps="$steps" \
        --against="$program --code=$REFERENCE ${reference[*]}"
else
    echo "REFERENCE is not set: the reference study's code is not timed."
fi
cases=()
for case in "${choices[@]}"; do cases+=("--case=$case"); done
part choices 130 -m imbalance_jax.bench --deadline=90 --seconds="$seconds" --noprofile "${cases[@]}"
