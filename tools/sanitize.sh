#!/bin/sh
# Runs the native tests under the address + undefined-behaviour and the thread
# sanitizers, at every instruction set this CPU has.
#
# Usage: tools/sanitize.sh [LEVEL...]   e.g. tools/sanitize.sh avx2 avx512_bf16
#        tools/sanitize.sh --quick      the baseline alone, which is all it builds
set -eu
cd "$(dirname "$0")/.."
kind=sanitize
built="-US3H_LEVELS"
if [ "${1:-}" = --quick ]; then
  kind=sanitize-quick
  built="-DS3H_LEVELS="
  set -- baseline
fi
# A test has one thread most of the time: as many at once as there are cores.
run() {
  printf '%s\n' "$@" | sed "s|.*|$build/&_test|" | xargs -P "$(nproc)" -n 1 env
}
levels="${*:-baseline avx2 avx512 amx_emulated avx512_bf16 amx}"
for sanitizer in address,undefined thread; do
  build="build/$kind-$(echo "$sanitizer" | tr , -)"
  cmake -G Ninja -S . -B "$build" -DS3H_SANITIZE="$sanitizer" $built \
    -DCMAKE_BUILD_TYPE=Sanitize -DCMAKE_CXX_FLAGS="-O1 -g1" >/dev/null
  cmake --build "$build" --target augment_test batch_norm_test prototypes_test \
    prototypical_test similarity_test supcon_test view_boxes_test views_test
  run augment view_boxes
  for level in $levels; do
    echo "-- $sanitizer, $level"
    export S3H_CPU_LEVEL="$level"
    run similarity views supcon prototypes prototypical batch_norm
  done
done
