#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU: build, info, tests, benchmarks, trainings. Logs
# and CSVs go to $OUT (default: gpu-results).
#
# Usage: tools/gpu_check.sh PYTHON
# PYTHON is an interpreter that holds this project's requirements.
#
# STEPS         the steps to run, in this order; those of $default where not set.
#               Where a call must be short, name some steps in each.
# STEP_SECONDS  what a step may take (default: 3600); one that hangs is ended then, and
#               counts as failed.
# TEST_ARGS     what pytest is given (default: python_tests).
# BENCHMARK_ARGS further options of the benchmarks of kernels, such as
#               --seconds 0.3, which all of them have.
# RESULTS_ARGS  further options of benchmarks.reproduce, for the step "results".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

default="build info tests benchmark-similarity benchmark-views benchmark-prototypes
  benchmark-training training-cuda profile train"
python=$1
out=${OUT:-gpu-results}
mkdir -p "$out"
# A step that is ended has said what it was doing.
export PYTHONUNBUFFERED=1

# One step, its output on the screen and in $out/NAME.log. A step that fails does
# not stop the rest: one call answers all questions.
failed=()
child=
step() {
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s: %s\n' "$name" "$*"
  : >"$out/$name.log"
  timeout --kill-after=150 "${STEP_SECONDS:-3600}" "$@" >"$out/$name.log" 2>&1 &
  child=$!
  tail --pid="$child" -s 0.1 -n +1 -f "$out/$name.log" &
  wait "$child" || failed+=("$name")
  wait
  printf -- '-- %s: %d s\n' "$name" $((SECONDS - start))
}
# The step that is under way may have something to save.
trap 'kill "$child" 2>/dev/null || true; wait; exit 143' INT TERM

run() {
  local m=("$python" -m)
  case $1 in
    # Without its requirements resolved again: the interpreter may hold another PyTorch
    # than the pinned one, and the machine may have no package index.
    build) step "$1" env S3H_CUDA="${S3H_CUDA:-auto}" "${m[@]}" pip install \
      --no-build-isolation --no-deps --no-index --editable . ;;
    info) step "$1" "${m[@]}" s3h_ext.info ;;
    # A test of kernels that were not built is a failure here, not a skip.
    tests) step "$1" env S3H_FAIL_ON_SKIP="are not built" \
      "${m[@]}" pytest -m cuda --durations=10 ${TEST_ARGS:-python_tests} ;;
    benchmark-similarity | benchmark-views | benchmark-prototypes)
      step "$1" "${m[@]}" "benchmarks.${1#benchmark-}_cuda" --output "$out" \
        ${BENCHMARK_ARGS:-} ;;
    benchmark-training)
      step "$1" "${m[@]}" benchmarks.training --device cuda --output "$out" ;;
    training-cuda) step "$1" "${m[@]}" benchmarks.training_cuda --output "$out" ;;
    profile) step "$1" "${m[@]}" benchmarks.profile_step --output "$out" ;;
    train) step "$1" "${m[@]}" s3h_ext.train --device cuda --epochs 3 \
      --output "$out/train-$(date +%s)" ;;
    # A checkpoint is written when a run is stopped, so few in between are enough.
    results) step "$1" "${m[@]}" benchmarks.reproduce --suite cifar100-lt \
      --seeds 0 1 2 --jobs 8 --output "$out/results" --device cuda \
      --checkpoint_every 20 ${RESULTS_ARGS:-} ;;
    *)
      echo "gpu-check: STEPS: there is no step $1; there are" $default results >&2
      failed+=("$1") ;;
  esac
}

if ! nvidia-smi -L >"$out/gpu.log" 2>&1; then
  echo "gpu-check: nvidia-smi finds no NVIDIA GPU on this machine; nothing was checked" >&2
  exit 1
fi
cat "$out/gpu.log"
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "gpu-check: $python cannot use the GPU with its PyTorch:" \
    "$("$python" -c 'import torch; print(torch.__version__)' 2>&1 | tail -n 1);" \
    "install a CUDA build of PyTorch" >&2
  exit 1
fi

missing=$("$python" -c '
from importlib.util import find_spec
names = "numpy jsonargparse yaml tensorboard tqdm sklearn matplotlib PIL pytest hypothesis"
print(*(name for name in names.split() if find_spec(name) is None))')
if [ -n "$missing" ]; then
  echo "gpu-check: $python lacks $missing; nothing was checked" >&2
  exit 1
fi

for name in ${STEPS:-$default}; do
  run "$name"
done

if [ ${#failed[@]} -gt 0 ]; then
  printf '\ngpu-check: FAILED: %s (logs in %s)\n' "${failed[*]}" "$out" >&2
  exit 1
fi
printf '\ngpu-check: all steps passed on %s (logs in %s)\n' "$(head -n 1 "$out/gpu.log")" "$out"
