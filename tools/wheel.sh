#!/usr/bin/env bash
# Build a wheel into dist/, give it the platform tag that it deserves, and try it in an
# environment that has never seen the project.
#
# The tag follows from the symbols that the libraries ask of glibc and libstdc++, so it
# is as old as the machine that builds: for an older one, build in a manylinux image.
# PyTorch's libraries are not copied in; the installed PyTorch has them.
#
# Usage: tools/wheel.sh VENV [REQUIREMENT...]
# where REQUIREMENTs, such as torch==2.12.0, go into the new environment beside the wheel.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=$(cd "$1/bin" && pwd)
shift
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$root"

"$bin/python" -m pip wheel --quiet --no-build-isolation --no-deps \
  --wheel-dir "$scratch" .
if ! PATH="$bin:$PATH" "$bin/auditwheel" repair --plat auto --wheel-dir "$scratch/out" \
  --exclude 'libtorch*.so' --exclude 'libc10*.so' "$scratch"/*.whl \
  >"$scratch/auditwheel.log" 2>&1; then
  cat "$scratch/auditwheel.log" >&2
  exit 1
fi
mkdir -p dist "$scratch/open"
wheel=dist/$(cd "$scratch/out" && echo *.whl)
mv "$scratch/out/${wheel#dist/}" "$wheel"
"$bin/python" -m zipfile -e "$wheel" "$scratch/open"
for symbols in GLIBC GLIBCXX; do
  newest=$(objdump -T "$scratch"/open/s3h_ext/*.so | grep -oE "\b${symbols}_[0-9.]+" |
    sort -V | tail -n 1)
  echo "asks for $newest at most"
done

"$bin/python" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --constraint <(if [ $# -gt 0 ]; then grep -v '^torch==' constraints-dev.txt
                 else cat constraints-dev.txt; fi) "$@" "$wheel"
cd "$scratch"
venv/bin/python -m s3h_ext.info
venv/bin/python -m s3h_ext.train --preset digits-lt/ce --epochs 1 --output run
test -s run/summary.json
echo "$wheel installs and trains"
