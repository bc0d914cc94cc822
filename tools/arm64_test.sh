#!/bin/sh
# Builds the native tests for arm64 and runs them under emulation.
# Debian: apt install g++-aarch64-linux-gnu qemu-user
#
# Usage: [ARM64_CXX=aarch64-linux-gnu-g++] tools/arm64_test.sh
set -eu
cd "$(dirname "$0")/.."
cxx=${ARM64_CXX:-aarch64-linux-gnu-g++}
for tool in "$cxx" qemu-aarch64; do
  if ! command -v "$tool" >/dev/null; then
    echo "arm64-test: $tool is not here; install g++-aarch64-linux-gnu and qemu-user" >&2
    exit 1
  fi
done
tests="augment_test batch_norm_test prototypes_test prototypical_test similarity_test supcon_test view_boxes_test views_test"
build=build/arm64
cmake -G Ninja -S . -B "$build" -DCMAKE_SYSTEM_NAME=Linux \
  -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER="$cxx" >/dev/null
cmake --build "$build" ${MAX_JOBS:+-j "$MAX_JOBS"} --target $tests
for name in $tests; do
  echo "-- $name"
  qemu-aarch64 -L /usr/aarch64-linux-gnu "$build/$name"
done
