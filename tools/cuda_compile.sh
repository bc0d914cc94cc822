#!/usr/bin/env bash
# Compile every CUDA source, hold what the compiler reports of each kernel against
# csrc/cuda/resources.csv and the model of their speed against speed.csv, and link the
# op library, beside a CPU build of torch too, to
# look at the symbols that it asks for. Runs no kernel. Needs nvcc, no GPU.
#
#   PYTHON=.venv/bin/python tools/cuda_compile.sh   for sm_80 and sm_90, or CUDA_ARCHS
#   PYTHON=.venv/bin/python tools/cuda_compile.sh --update   and write the table anew
#
# CUDA_ARCHS as in TORCH_CUDA_ARCH_LIST. PYTHON holds the requirements of a build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export CUDA_ARCHS=${CUDA_ARCHS:-8.0 9.0}
nvcc=${NVCC:-nvcc}
python=$(command -v "${PYTHON:-python3}")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
export PATH=${python%/*}:$PATH
sources=(csrc/cuda/*.cu)
if ! command -v "$nvcc" >/dev/null; then
  echo "cuda-compile: no '$nvcc' found, so ${#sources[@]} CUDA sources were NOT compiled;" \
    "put the CUDA toolkit's bin folder on the PATH or set NVCC" >&2
  exit 1
fi

release=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
echo "cuda-compile: nvcc $release, ${#sources[@]} sources for $CUDA_ARCHS"
out=$PWD/build/cuda-compile
rm -rf "$out"
mkdir -p "$out"
found=$("$python" -c \
  'import os, torch; print(torch.__version__, os.path.dirname(torch.__file__))')
tree=$(tools/cuda_tree.sh "$python" "${found#* }" "${found%% *}" "$out")
cmake --build "$tree" --target s3h_cuda ${MAX_JOBS:+-j "$MAX_JOBS"} -- --quiet \
  >"$out/log" 2>&1 || {
  cat "$out/log" >&2
  exit 1
}
"$python" tools/cuda_resources.py --release "$release" "$@" "$out/log"
# The machine code of the architectures and the compiler that the table is of.
if [ "$CUDA_ARCHS" = "8.0 9.0" ] && grep -q "nvcc $release" csrc/cuda/resources.csv; then
  hot=()
  for source in similarity_bf16 similarity_fp16 similarity_fp32 views; do
    hot+=("$tree/CMakeFiles/s3h_cuda_kernels.dir/csrc/cuda/$source.cu.o")
  done
  "$python" tools/cuda_speed.py "$@" "${hot[@]}"
fi
"$python" tools/check_symbols.py "$out/_s3h_cuda.so"
echo "cuda-compile: ${#sources[@]} sources compiled; none was run"
