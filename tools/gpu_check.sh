#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one go: build, info, tests, benchmarks, a
# short training. Logs and CSVs go to $OUT (default: gpu-results).
#
# Usage: tools/gpu_check.sh PYTHON
# PYTHON is an interpreter that holds this project's requirements.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=$1
out=${OUT:-gpu-results}
mkdir -p "$out"

# One step, its output on the screen and in $out/NAME.log. A step that fails does
# not stop the rest: one visit to a GPU answers all questions.
failed=()
step() {
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s: %s\n' "$name" "$*"
  "$@" 2>&1 | tee "$out/$name.log" || failed+=("$name")
  printf -- '-- %s: %d s\n' "$name" $((SECONDS - start))
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

# Without its requirements resolved again: the interpreter may hold another PyTorch
# than the pinned one, and the machine may have no package index.
step build env S3H_CUDA="${S3H_CUDA:-auto}" \
  "$python" -m pip install --no-build-isolation --no-deps --no-index --editable .
step info "$python" -m s3h_ext.info
# A test of kernels that were not built is a failure here, not a skip.
step tests env S3H_FAIL_ON_SKIP="are not built" "$python" -m pytest -m cuda python_tests
step benchmark-similarity "$python" -m benchmarks.similarity_cuda --output "$out"
step benchmark-views "$python" -m benchmarks.views_cuda --output "$out"
step benchmark-prototypes "$python" -m benchmarks.prototypes_cuda --output "$out"
step benchmark-training "$python" -m benchmarks.training --device cuda
cp benchmarks/results/training.csv "$out"
step train "$python" -m s3h_ext.train --device cuda --epochs 3 --output "$out/train"

if [ ${#failed[@]} -gt 0 ]; then
  printf '\ngpu-check: FAILED: %s (logs in %s)\n' "${failed[*]}" "$out" >&2
  exit 1
fi
printf '\ngpu-check: all steps passed on %s (logs in %s)\n' "$(head -n 1 "$out/gpu.log")" "$out"
