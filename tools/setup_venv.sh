#!/usr/bin/env bash
# Create a virtual environment, if it is not there yet, and install requirements
# of this project into it at the versions of constraints-dev.txt.
#
# Usage: [PYTHON=python3] tools/setup_venv.sh VENV GROUP...
# where GROUP is `build`, `runtime` or the name of an extra in pyproject.toml.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
venv=$1
shift

fail() {
  printf 'setup_venv: %s\n' "$@" >&2
  exit 1
}

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  command -v "$python" >/dev/null ||
    fail "no '$python' found; name a Python >= 3.10, for example: make PYTHON=python3.11 ..."
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
    fail "'$python' does not run; name a Python >= 3.10, for example: make PYTHON=python3.11 ..."
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "expected Python >= 3.10; '$python' is $version. Name another, for example: make PYTHON=python3.11 ..."
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "'$python' ($version) comes without the modules venv and ensurepip." \
      "Debian and Ubuntu: sudo apt install python$version-venv. Or name another: make PYTHON=... "
  echo "Creating $venv with $python ($version)"
  "$python" -m venv --clear "$venv"
fi

groups=("$@")
requirements="$venv/requirements-$(IFS=-; echo "${groups[*]}").txt"
"$venv/bin/python" "$root/tools/requirements.py" "${groups[@]}" >"$requirements"

# Downloads of several hundred MB deserve their progress bars; logs do not.
quiet=()
[ -t 1 ] || quiet=(--quiet)
echo "Installing into $venv: ${groups[*]} requirements (the first time, PyTorch takes a while)"
"$venv/bin/python" -m pip install "${quiet[@]}" --disable-pip-version-check \
  --constraint "$root/constraints-dev.txt" --requirement "$requirements"
