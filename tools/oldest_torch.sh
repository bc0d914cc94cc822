#!/usr/bin/env bash
# Hold the promise of one binary for every PyTorch from the oldest supported one on:
#
#   1. build all libraries against the oldest PyTorch, its CUDA build from the package
#      index, into build/oldest-torch/lib; the CUDA library where nvcc is there, of the
#      objects of `make cuda-compile` where they are there and no source is newer;
#   2. load them into that PyTorch, and into PYTHON's own where it has one;
#   3. load what `make build` and `make cuda-compile` made with the newest PyTorch into
#      the oldest, where they are there.
#
# Needs no GPU. Of NVIDIA's libraries only the CUDA runtime and CUPTI are fetched, which
# PyTorch calls while it is loaded; stand-ins take the place of cuBLAS, cuDNN and others.
#
# Usage: [CUDA_ARCHS="8.0 9.0"] tools/oldest_torch.sh PYTHON
# PYTHON holds the requirements to build and to run, PyTorch not necessarily.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
export PATH=${python%/*}:$PATH

oldest=$(sed -n 's/^ *"torch>=\([0-9.]*\)",$/\1/p' pyproject.toml).0
tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
out=$PWD/build/oldest-torch
site=$out/torch-$oldest-$tag
fetch() {
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile \
    --only-binary=:all: --target "$site" "$@"
}
if [ ! -f "$site/complete" ]; then
  rm -rf "$site"
  fetch "torch==$oldest"
  cuda=$(sed -n 's/^Requires-Dist: cuda-toolkit.*==\([0-9]*\.[0-9]*\).*/\1/p' \
    "$site"/torch-*.dist-info/METADATA)
  fetch "nvidia-cuda-runtime==$cuda.*" "nvidia-cuda-cupti==$cuda.*"
  touch "$site/complete"
fi
echo "oldest-torch: PyTorch $oldest for $tag is here after $SECONDS s"

command -v nvcc >/dev/null ||
  echo "oldest-torch: nvcc is not here, so the CUDA library is not built"
rm -rf "$out/lib"
tree=$(tools/cuda_tree.sh "$python" "$site/torch" "$oldest" "$out/lib")
cmake --build "$tree" ${MAX_JOBS:+-j "$MAX_JOBS"} -- --quiet >"$out/log" 2>&1 || {
  cat "$out/log" >&2
  exit 1
}
echo "oldest-torch: built $(cd "$out/lib" && echo *.so) after $SECONDS s"

# Every function that PyTorch takes from the libraries that are not here, in one library
# which the others need.
stand_ins=$out/stand-ins
rm -rf "$stand_ins"
mkdir "$stand_ins"
nm -D --undefined-only "$site"/torch/lib/*.so | sed 's/@.*//' |
  awk '$1 == "U" && $2 ~ /^(cu|nccl|nvshmem)/ && $2 !~ /^(cuda|cupti)/ {print $2}' |
  sort -u | sed 's/.*/void &(void) {}/' >"$stand_ins/names.c"
cc -w -fno-builtin -shared -fPIC -Wl,-soname,libnames.so \
  -o "$stand_ins/libnames.so" "$stand_ins/names.c"
for name in $(objdump -p "$site"/torch/lib/*.so | awk '$1 == "NEEDED" {print $2}' |
  sort -u | grep -E '^lib(cu|nccl|nvshmem)' | grep -vE '^libcu(da|dart|pti)\.'); do
  cc -shared -nostdlib -Wl,-soname,"$name" -Wl,--no-as-needed \
    -o "$stand_ins/$name" -L"$stand_ins" -lnames
done

# load LIBRARY... with PYTHON's modules, after the variables that are given
load() {
  rm -rf "$out/package"
  mkdir "$out/package"
  tar c --exclude='*.so' --exclude=__pycache__ s3h_ext | tar x -C "$out/package"
  cp "$@" "$out/package/s3h_ext/"
  PYTHONPATH=$out/package:${modules:-} PYTHONDONTWRITEBYTECODE=1 \
    LD_LIBRARY_PATH=${libraries:-} "$python" tools/loads.py
}
load_into_oldest() {
  modules=$site libraries=$stand_ins:$(echo "$site"/nvidia/*/lib) load "$@"
}
load_into_oldest "$out"/lib/_s3h_c*.so
if "$python" -c 'import torch' 2>/dev/null; then
  load "$out"/lib/_s3h_c*.so
fi
newest=()
for library in s3h_ext/_s3h_cpu.so build/cuda-compile/_s3h_cuda.so; do
  [ ! -f "$library" ] || newest+=("$library")
done
if [ -f s3h_ext/_s3h_cpu.so ]; then
  load_into_oldest "${newest[@]}"
else
  echo "oldest-torch: nothing of make build is here to be loaded into PyTorch $oldest"
fi
echo "oldest-torch: done after $SECONDS s"
