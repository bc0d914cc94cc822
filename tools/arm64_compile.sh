#!/bin/sh
# Compiles the kernels for arm64 with warnings as errors: no file may need an x86
# instruction set. Does nothing where there is no cross compiler (Debian:
# g++-aarch64-linux-gnu).
#
# Usage: [ARM64_CXX=aarch64-linux-gnu-g++] tools/arm64_compile.sh
set -eu
cd "$(dirname "$0")/.."
cxx=${ARM64_CXX:-aarch64-linux-gnu-g++}
if ! command -v "$cxx" >/dev/null; then
  echo "$cxx is not here; nothing was compiled for arm64"
  exit 0
fi
# The definition goes with the flag: csrc/common/exact.h asks for both.
flags="-std=c++20 -O1 -Wall -Wextra -Werror -ffp-contract=off -DS3H_FP_CONTRACT_OFF"
sources=$(ls csrc/cpu/*.cpp)
headers=$(ls csrc/common/*.h)
echo "$sources" | xargs -P "$(nproc)" -I{} "$cxx" $flags -c {} -o /dev/null
echo "$headers" | xargs -P "$(nproc)" -I{} "$cxx" $flags -w -x c++ -fsyntax-only {}
echo "$(echo "$sources" "$headers" | wc -w) files compile for arm64"
