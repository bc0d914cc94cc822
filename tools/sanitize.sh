#!/bin/sh
# Runs the native tests under the address + undefined-behaviour and the thread
# sanitizers, at every instruction set this CPU has.
#
# Usage: tools/sanitize.sh [LEVEL...]   e.g. tools/sanitize.sh avx2 avx512_bf16
set -eu
cd "$(dirname "$0")/.."
levels="${*:-baseline avx2 avx512 avx512_bf16}"
for sanitizer in address,undefined thread; do
  build="build/sanitize-$(echo "$sanitizer" | tr , -)"
  cmake -G Ninja -S . -B "$build" -DS3H_SANITIZE="$sanitizer" \
    -DCMAKE_BUILD_TYPE=Sanitize -DCMAKE_CXX_FLAGS="-O1 -g1" >/dev/null
  cmake --build "$build" --target similarity_test prototypes_test
  for level in $levels; do
    echo "-- $sanitizer, $level"
    S3H_CPU_LEVEL="$level" "$build/similarity_test"
    S3H_CPU_LEVEL="$level" "$build/prototypes_test"
  done
done
