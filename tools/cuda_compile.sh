#!/usr/bin/env bash
# Compile every CUDA source, without linking or running it, and hold what the compiler
# reports of each kernel against csrc/cuda/resources.csv. Needs nvcc, no GPU.
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
  "$nvcc" -std=c++20 -O3 -Icsrc -Werror all-warnings -Xcompiler -Wall,-Wextra,-fPIC \
    -Xptxas -v "${@:2}" -c "$1" -o "$out/$name.o" >"$out/$name.log" 2>&1 || {
    cat "$out/$name.log" >&2
    return 255 # xargs stops
  }
}
export -f compile
export nvcc out
printf '%s\n' "${sources[@]}" |
  xargs -P "$jobs" -I{} bash -c 'compile "$@"' - {} "${targets[@]}"
"${PYTHON:-python3}" tools/cuda_resources.py --release "$release" "$@" "$out"/*.log
echo "cuda-compile: ${#sources[@]} sources compiled; none was run"
