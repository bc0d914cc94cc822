#!/usr/bin/env bash
# Compile every CUDA source for sm_80 and sm_90, without linking or running it.
# Needs nvcc, no GPU. Objects go to build/cuda-compile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

shopt -s nullglob
sources=(csrc/cuda/*.cu)
if [ ${#sources[@]} -eq 0 ]; then
  echo "cuda-compile: csrc/cuda holds no .cu file; nothing was compiled"
  exit 0
fi
nvcc=${NVCC:-nvcc}
if ! command -v "$nvcc" >/dev/null; then
  echo "cuda-compile: no '$nvcc' found, so ${#sources[@]} CUDA sources were NOT compiled;" \
    "put the CUDA toolkit's bin folder on the PATH or set NVCC" >&2
  exit 1
fi

"$nvcc" --version | tail -n 2
mkdir -p build/cuda-compile
for source in "${sources[@]}"; do
  echo "cuda-compile: $source for sm_80, sm_90"
  "$nvcc" -std=c++20 -O2 -Icsrc -Werror all-warnings -Xcompiler -Wall,-Wextra,-fPIC \
    -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 \
    -c "$source" -o "build/cuda-compile/$(basename "$source" .cu).o"
done
echo "cuda-compile: ${#sources[@]} sources compiled for sm_80 and sm_90; none was run"
