#!/usr/bin/env bash
# Run the fuzzers one after the other, each for FUZZ_SECONDS (default 120).
#
# Usage: [FUZZ_SECONDS=600] tools/fuzz/run.sh PYTHON [TARGET...]
# PYTHON is an interpreter that can import s3h_ext; Atheris is installed into it. What
# the fuzzers keep goes to build/fuzz/TARGET and is used again the next time. A finding
# ends with its name; put it into tools/fuzz/corpus/TARGET as found-WHAT, mend it, and
# say in python_tests/fuzz/test_corpus.py what should come of it.
set -euo pipefail

python=$1
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(archive options)

"$python" -c 'import atheris' 2>/dev/null ||
  "$python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$root/constraints-dev.txt" atheris ||
  {
    echo "fuzz: expected Atheris in $python; it comes for CPython 3.11 to 3.13 on x86-64" >&2
    exit 1
  }

for target in "${targets[@]}"; do
  kept="$root/build/fuzz/$target"
  mkdir -p "$kept"
  echo "=== $target: ${FUZZ_SECONDS:-120} s, log in $kept.log"
  OMP_NUM_THREADS=1 PYTHONPATH="$root" "$python" "$root/tools/fuzz/fuzz.py" "$target" \
    "$kept" -max_total_time="${FUZZ_SECONDS:-120}" -print_final_stats=1 \
    -artifact_prefix="$root/build/fuzz/$target-" </dev/null >"$kept.log" 2>&1 ||
    {
      tail -n 40 "$kept.log"
      echo "fuzz: $target found something, see $root/build/fuzz/$target-*" >&2
      exit 1
    }
  grep -E 'DONE|stat::' "$kept.log"
done
