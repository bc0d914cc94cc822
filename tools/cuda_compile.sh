#!/usr/bin/env bash
# Compile every CUDA source, hold what the compiler reports of each kernel against
# csrc/cuda/resources.csv, and link the op library beside a CPU build of torch, if PYTHON
# has one, to look at the symbols that it asks for. Runs no kernel. Needs nvcc, no GPU.
#
#   tools/cuda_compile.sh            for sm_80 and sm_90, or those in CUDA_ARCHS
#   tools/cuda_compile.sh --update   and write the table anew
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

archs=${CUDA_ARCHS:-80 90}
nvcc=${NVCC:-nvcc}
jobs=${MAX_JOBS:-$(nproc)}
sources=(csrc/cuda/*.cu)
if ! command -v "$nvcc" >/dev/null; then
  echo "cuda-compile: no '$nvcc' found, so ${#sources[@]} CUDA sources were NOT compiled;" \
    "put the CUDA toolkit's bin folder on the PATH or set NVCC" >&2
  exit 1
fi

release=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
echo "cuda-compile: nvcc $release, ${#sources[@]} sources for" \
  "$(printf 'sm_%s ' $archs), $jobs at a time"
out=build/cuda-compile
rm -rf "$out"
mkdir -p "$out"
targets=()
for arch in $archs; do
  targets+=(-gencode "arch=compute_$arch,code=sm_$arch")
done

compile() {
  local name
  name=$(basename "$1" .cu)
  # As in cmake/cuda.cmake: one rounding per operation.
  local exact=()
  case $name in augment | view_boxes) exact=(--fmad=false) ;; esac
  "$nvcc" -std=c++20 -O3 -Icsrc -Werror all-warnings -Xcompiler -Wall,-Wextra,-fPIC \
    -Xptxas -v "${exact[@]}" "${@:2}" -c "$1" -o "$out/$name.o" >"$out/$name.log" 2>&1 || {
    cat "$out/$name.log" >&2
    return 255 # xargs stops
  }
}
export -f compile
export nvcc out
printf '%s\n' "${sources[@]}" |
  xargs -P "$jobs" -I{} bash -c 'compile "$@"' - {} "${targets[@]}"
python=${PYTHON:-python3}
"$python" tools/cuda_resources.py --release "$release" "$@" "$out"/*.log

# What cmake/cuda.cmake does with the objects: it would compile them again.
torch=$("$python" -c 'import os, torch; print(os.path.dirname(torch.__file__))' \
  2>/dev/null) || torch=
if [ -z "$torch" ]; then
  echo "cuda-compile: $python has no torch, so nothing was linked"
else
  register() {
    "$nvcc" -std=c++20 -O1 -Xcompiler -Wall,-Wextra,-Werror,-fPIC,-fvisibility=hidden \
      -DTORCH_TARGET_VERSION=0x020b000000000000 -DUSE_CUDA '-DS3H_CUDA_ARCHS="none"' \
      -isystem "$torch/include" -c "$1" -o "$out/register_$(basename "$1" .cpp).o" || return 255
  }
  export -f register
  export torch
  grep -l S3H_DISPATCH_KEY csrc/torch/*.cpp |
    xargs -P "$jobs" -I{} bash -c 'register "$@"' - {}
  "$nvcc" -shared -cudart static -o "$out/_s3h_cuda.so" "$out"/*.o \
    -Xlinker --no-as-needed,"$torch/lib/libtorch.so","$torch/lib/libtorch_cpu.so" \
    -Xlinker --exclude-libs,ALL
  "$python" tools/check_symbols.py "$out/_s3h_cuda.so"
fi
echo "cuda-compile: ${#sources[@]} sources compiled; none was run"
