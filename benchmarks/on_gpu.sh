#!/usr/bin/env bash
# Everything worth doing on a GPU, in steps that go on where they stopped; results are written as they come.
#
#     benchmarks/on_gpu.sh wheels [3.12]          on a machine with a network: what the other one lacks, into
#                                                 benchmarks/wheels, at most 64 MiB
#     benchmarks/on_gpu.sh run RESULTS [SECONDS]  on the machine with the GPU: the next steps, for at most so long (540)
#
# The GPU machine needs Python with PyTorch, whose wheels bring NVRTC, and nothing else of sdpl's: no pydantic, open_clip,
# ONNX or TensorRT. Call `run` until its last line says "all done"; RESULTS then holds at most 8 files, and may move to
# another machine between two calls. A step that fails is tried once more by the next call; steps that need what is not
# there say so and are left out.
set -uo pipefail
cd "$(dirname "$0")/.."
wheels=benchmarks/wheels
python=${PYTHON:-python3}

if [ "${1:-}" = wheels ]; then
  "$python" -m pip download --quiet --no-deps --only-binary :all: --implementation cp \
    --python-version "${2:-3.12}" --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --dest "$wheels" \
    "click<9" "filelock<4" "platformdirs<5" "array-api-compat<2" "safetensors<1" "pillow<13" \
    pydantic==2.12.5 pydantic-core==2.41.5 annotated-types typing-inspection typing-extensions \
    "cuda-bindings>=13.0.3,<14" "cuda-core>=1.0.1,<2" "cuda-pathfinder>=1.2" || exit
  bytes=$(cat "$wheels"/*.whl | wc -c)
  echo "$wheels: $(ls "$wheels"/*.whl | wc -l) wheels, $((bytes >> 20)) MiB"
  [ "$bytes" -le $((64 << 20)) ] || { echo "more than the 64 MiB that can be carried" >&2; exit 1; }
  exit
fi
[ "${1:-}" = run ] || { sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2; }

results=${2:?usage: benchmarks/on_gpu.sh run RESULTS [SECONDS]}
until=$((SECONDS + ${3:-540}))
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || {
  echo "PyTorch finds no GPU here: nothing was run" >&2
  exit 1
}
mkdir -p "$results"
export XDG_CACHE_HOME="${XDG_CACHE_HOME:-/tmp/sdpl-on-gpu}"
site=$XDG_CACHE_HOME/site
if [ -d "$wheels" ] && [ ! -d "$site" ]; then
  "$python" -m pip install --quiet --no-deps --no-index --target="$site.part" "$wheels"/*.whl && mv "$site.part" "$site" || {
    echo "$wheels is for another Python than this $("$python" -V): nothing was run" >&2
    exit 1
  }
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 SDPL_WHEELS=$site PATH="$PATH:/usr/local/cuda/bin"
log=$results/log.txt
unfinished=() failed=()

step() { # step NAME MOST_SECONDS SCRIPT ARGUMENTS...: what it prints goes into the log; done once it has ended well.
  # @seconds among the arguments: how long it may go on by itself. One that has to be stopped after MOST_SECONDS hangs.
  local name=$1 most=$2 left=$((until - SECONDS)) status
  shift 2
  if grep -qs "^== $name: failed twice" "$log"; then failed+=("$name"); return; fi
  if grep -qs "^== $name: done" "$log"; then return; fi
  if [ "$left" -lt 60 ]; then
    unfinished+=("$name")
    return
  fi
  echo "== $name: started $(date -u +%H:%M:%S)" | tee -a "$log"
  local allowed=$((left < most ? left : most))
  timeout -k 10 "$allowed" "$python" benchmarks/with_wheels.py "${@/#@seconds/$((allowed - 40))}" >>"$log" 2>&1
  status=$?
  if [ "$status" = 0 ]; then
    echo "== $name: done" | tee -a "$log"
  elif [ "$status" = 3 ] || { [ "$allowed" -lt "$most" ] && [[ $status = 124 || $status = 137 ]]; }; then
    echo "== $name: goes on with the next call" | tee -a "$log"
    unfinished+=("$name")
  elif grep -qs "^== $name: failed" "$log"; then
    echo "== $name: failed twice" | tee -a "$log"
    failed+=("$name")
  else
    echo "== $name: failed with status $status" | tee -a "$log"
    tail -n 5 "$log"
    unfinished+=("$name")
  fi
}

nvidia-smi -q >"$results/nvidia-smi.txt" 2>&1
name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 | tr ' ' '-' | tr -cd 'A-Za-z0-9-')
step kernels 180 kernel_once.py
step two-stage-answers 180 two_stage.py --quick
step kernel-quick 300 kernel.py --quick --seconds @seconds --out "$results/kernel-$name.json"
step two-stage 300 two_stage.py --seconds @seconds --out "$results/two_stage-$name.json"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck; do # each tensor in memory of its own, so that what is beside it is seen
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "sanitizer-$tool" 300 \
      --under compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 1 -- kernel_once.py --small
  done
else
  echo "compute-sanitizer is not installed: left out"
fi
step kernel 480 kernel.py --seconds @seconds --out "$results/kernel-$name.json"
if "$python" -c "import open_clip, onnx, pydantic" 2>/dev/null; then
  step gpu-model 480 gpu_model.py --folder /tmp/sdpl-on-gpu/work --seconds @seconds --out "$results/gpu_model-$name.json"
else
  echo "open_clip or ONNX is not installed: the whole model is left out"
fi
if [ ${#unfinished[@]} -eq 0 ]; then echo "all done; failed: ${failed[*]:-none}"; else echo "call again for: ${unfinished[*]}"; fi
