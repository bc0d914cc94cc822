#!/usr/bin/env bash
# Configure the build tree that make cuda-compile and make oldest-torch share, and print
# its path. The CUDA kernels see no PyTorch, so what is compiled for one of the two is
# compiled for the other.
#
# Usage: [CUDA_ARCHS="8.0 9.0"] [NVCC=nvcc] tools/cuda_tree.sh PYTHON TORCH VERSION OUTPUT
# where TORCH is the folder of a PyTorch package and OUTPUT that of the libraries.
# Without nvcc, the tree is of the CPU libraries alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$1
nvcc=$(command -v "${NVCC:-nvcc}" || true)
tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
tree=build/cuda-compile/cmake-$tag
TORCH_CUDA_ARCH_LIST=${CUDA_ARCHS:-8.0 9.0} cmake -G Ninja -S . -B "$tree" \
  -DS3H_TORCH_DIR="$2" -DS3H_TORCH_VERSION="$3" -DS3H_OUTPUT_DIR="$4" \
  -DS3H_CUDA="$([ -n "$nvcc" ] && echo ON || echo OFF)" -DS3H_CUDA_NOTE="$0" \
  ${nvcc:+-DCMAKE_CUDA_COMPILER="$nvcc" -DCMAKE_CUDA_FLAGS="-Xptxas -v"} \
  -DPython_EXECUTABLE="$python" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >/dev/null
echo "$tree"
