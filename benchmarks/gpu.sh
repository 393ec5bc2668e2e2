#!/usr/bin/env bash
# All checks of training speed that need a GPU, in one go: below 8 minutes on one card, one table at the end.
#
#     bash benchmarks/gpu.sh                         # in OUT=runs/gpu, or the folder that OUT names
#     bash benchmarks/gpu.sh --device cpu --quick    # does it run? Tiny steps on a CPU; the figures mean nothing
#
# It needs this checkout and a Python (PYTHON, otherwise python3) with: torch transformers accelerate pydantic xxhash rich.
# First the recipes' own steps for a minute each: MFU against this card's own matrix product and its published rate, and
# how long the paper's 12.5B tokens of PT and CP take at that speed. Then side by side with transformers' Trainer.
# Random tokens: speed does not depend on them. A shape whose figures lie in the folder is not measured again.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=src PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
python="${PYTHON:-python3}" out="${OUT:-runs/gpu}" device=cuda quick=""
while [ $# -gt 0 ]; do
    case "$1" in
        --device) device="$2"; shift 2 ;;
        --quick) quick="--quick"; shift ;;
        *) echo "gpu.sh: unknown word $1; it takes --device cpu|cuda and --quick" >&2; exit 2 ;;
    esac
done
"$python" -c 'import torch, transformers, accelerate, pydantic, xxhash, rich, yaml' || {
    echo "  do: pip install torch transformers accelerate pydantic xxhash rich" >&2
    exit 2
}
seconds=60 schedule_limit=100 limit=60 arms=(ours Trainer "Trainer, compiled")
if [ -n "$quick" ]; then
    seconds=1 schedule_limit=600 limit=600 arms=(ours Trainer)
fi
# What does not end in its time is left out of the table, and the rest goes on.
measured() { timeout --signal=KILL "$1" "$python" benchmarks/training.py "$out" --device "$device" $quick "${@:2}"; }
for shape in phi3-50m phi3-120m llama3.1-150m; do
    measured "$schedule_limit" --schedule --seconds "$seconds" --shapes "$shape" > /dev/null ||
        echo "$shape: no schedule" >&2
done
for shape in demo phi3-50m llama3.1-150m; do
    measured "$limit" --shapes "$shape" --arms "${arms[@]}" > /dev/null || echo "$shape: not side by side" >&2
done
"$python" benchmarks/training.py "$out" --device "$device" --shapes
