#!/usr/bin/env bash
# Everything worth doing on a GPU, in one call; results go into a folder as JSON and logs.
#
#     benchmarks/on_gpu.sh RESULTS [python]
#
# A step that fails does not stop the others; the last line names those that did.
set -uo pipefail
cd "$(dirname "$0")/.."
results=${1:?usage: benchmarks/on_gpu.sh RESULTS [python]}
python=${2:-python3}
mkdir -p "$results"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
name=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | tr ' ' '-' | tr -cd 'A-Za-z0-9-')
failed=()

step() { # step NAME SECONDS COMMAND...: its output into NAME.log
  local step=$1 seconds=$2
  shift 2
  echo "== $step"
  timeout "$seconds" "$@" >"$results/$step.log" 2>&1 || failed+=("$step")
  tail -n 3 "$results/$step.log"
}

nvidia-smi >"$results/nvidia-smi.log"
step tests 240 "$python" -m pytest -q tests/kernels tests/runtime -k "gpu or kernel or two_stage or torch_op"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck; do
    step "sanitizer-$tool" 180 compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" benchmarks/kernel_once.py
  done
else
  echo "compute-sanitizer is not installed: left out"
fi
step kernel 600 "$python" benchmarks/kernel.py --out "$results/kernel-$name.json"
step gpu_model 600 "$python" benchmarks/gpu_model.py --folder "$results/work" --out "$results/gpu_model-$name.json"
rm -rf "$results/work"
echo "failed: ${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
