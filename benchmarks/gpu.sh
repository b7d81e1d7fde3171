#!/usr/bin/env bash
# Everything that wants a GPU, in one call and under nine minutes (and fifteen more with VLLM_PYTHON):
#   bash benchmarks/gpu.sh [FOLDER]        (default: benchmarks/results/gpu)
# Writes one JSON and one text file per benchmark; each has its own time limit, and one that fails stops no other.
# The same on a CPU, with a model that fits and ten times the patience:
#   DEVICE=cpu MODEL=llava-0.5b OTHER= ROUNDS=1 PATIENCE=10 bash benchmarks/gpu.sh results/cpu
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=${1:-benchmarks/results/gpu}
PYTHON=${PYTHON:-python}
DEVICE=${DEVICE:-cuda}
MODEL=${MODEL-llava-1.5-7b}
OTHER=${OTHER-qwen2.5-vl-7b}
ROUNDS=${ROUNDS:-7}
PATIENCE=${PATIENCE:-1}
VLLM_PYTHON=${VLLM_PYTHON-}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
mkdir -p "$OUT"
failed=0

step() { # step NAME SECONDS COMMAND...
  local name=$1 limit=$(($2 * PATIENCE)); shift 2
  echo "==> $name: $*"
  if ! timeout "$limit" "$@" > "$OUT/$name.txt" 2> "$OUT/$name.err"; then
    echo "    failed or out of time (limit $limit s); last line: $(tail -n 1 "$OUT/$name.err")"
    failed=1
  else
    rm -f "$OUT/$name.err"
  fi
  cat "$OUT/$name.txt"
}

bench() { # bench NAME SECONDS OPTIONS...
  local name=$1 limit=$2; shift 2
  step "$name" "$limit" "$PYTHON" -m tokenprune.cli bench --device "$DEVICE" --rounds "$ROUNDS" --output "$OUT/$name.json" "$@"
}

[ "$DEVICE" = cpu ] || nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$OUT/device.txt"
step entropy 60 "$PYTHON" benchmarks/entropy.py --device "$DEVICE" --json "$OUT/entropy.json"
[ "$DEVICE" = cpu ] || step entropy-triton 60 "$PYTHON" benchmarks/entropy.py --device "$DEVICE" --backend triton --json "$OUT/entropy-triton.json"
bench speed 130 --model "$MODEL" --average-tokens 192 --average-tokens 128 --average-tokens 64 --batch 1 --batch 8 --decode 16
bench methods 90 --model "$MODEL" --method all --average-tokens 128 --decode 4
bench ragged 60 --model "$MODEL" --ragged --batch 8 --average-ratio 0.2222 --decode 32
[ -z "$OTHER" ] || bench other 70 --model "$OTHER" --batch 1 --decode 8
step scaling 60 "$PYTHON" benchmarks/scaling.py --device "$DEVICE" --json "$OUT/scaling.json" --plot "$OUT/scaling.png"
# vLLM for CUDA has an environment of its own, with tokenprune and plugins/tokenprune-vllm: VLLM_PYTHON=... bash benchmarks/gpu.sh
[ -z "$VLLM_PYTHON" ] || step vllm 900 "$VLLM_PYTHON" benchmarks/vllm_speed.py --rounds 3 --output "$OUT/vllm"
exit "$failed"
