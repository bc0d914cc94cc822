#!/usr/bin/env bash
# What only a GPU can say, in stages that fit into a short visit to one; the most
# valuable evidence comes first, and nothing waits for what is not needed.
#
# Usage: [PYTHON=python3] tools/gpu_evidence.sh STAGE...
#
#   prepare  where a package index and nvcc are, and no GPU: packs into build/gpu what a
#            GPU machine may lack: libraries built against the oldest PyTorch, wheels,
#            and CIFAR-100 where S3H_DATA_ROOT has it. PYTHON: of the version there, with
#            its headers; it needs no package.
#   a        9 minutes: do the libraries load, are values right, how fast; tests,
#            compute-sanitizer, ncu
#   b        3 minutes: training with and without CUDA graphs, DALI, the documented build
#   batch    8 minutes of whole trainings, to be repeated: each goes on where the last
#            stopped. BATCH_ARGS: further options of benchmarks.reproduce
#   full     without a limit: all benchmarks, and the tests that compile
#
# OUT       folder of the logs and tables (default: gpu-results); at most 8 files a stage
# PLAYED=1  a CPU takes the part of the GPU: tries this script, measures nothing; needs
#           something called nvidia-smi, ncu and compute-sanitizer on the PATH
#
# Status: 0; 1 where a step failed; 3 where there are no kernels that load, which ends
# the visit at once.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
out=${OUT:-gpu-results}
packed=build/gpu
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD/$packed/site:$PWD${PYTHONPATH:+:$PYTHONPATH}
device=cuda
[ -z "${PLAYED:-}" ] || device=cpu
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=()
child=

say() { printf '[%4d s] %s\n' $((SECONDS - start)) "$*" | tee -a "$out/summary.txt"; }

# step SECONDS LOG COMMAND...: at most what is left of the stage, its output in LOG.
step() {
  local limit=$1 log=$out/$2 left=$((start + stage_seconds - SECONDS)) began status
  shift 2
  if [ "$left" -lt 5 ]; then
    say "no time left for: $*"
    failed+=("$*")
    return 1
  fi
  began=$SECONDS
  printf '== %s\n' "$*" >>"$log"
  timeout --kill-after=10 $((limit < left ? limit : left)) "$@" >>"$log" 2>&1 &
  child=$!
  wait "$child"
  status=$?
  say "status $status in $((SECONDS - began)) s: $*"
  [ $status = 0 ] || failed+=("$*")
  return $status
}
# What is under way may have something to save.
trap 'kill "$child" 2>/dev/null; wait; exit 143' INT TERM

measure() {
  step "$2" times.txt "$python" tools/gpu_evidence_times.py "$1" \
    --device $device --output "$out"
  awk '/^== / {text = ""} {text = text $0 "\n"} END {printf "%s", text}' "$out/times.txt"
}

prepare() {
  set -e
  local own version library built=build/oldest-torch
  env -u PYTHON -u PYTHONPATH CUDA_ARCHS="${CUDA_ARCHS:-9.0}" make oldest-torch
  own=$PWD/.venv/bin/python
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  # The one library that is tied to a version of Python.
  PATH=${own%/*}:$PATH cmake -G Ninja -S . -B "$built/cmake-host-$version" \
    -DS3H_TORCH_DIR="$(echo "$PWD/$built"/torch-*/torch)" \
    -DS3H_OUTPUT_DIR="$PWD/$built/host" \
    -DPython_EXECUTABLE="$(command -v "$python")" \
    -Dpybind11_DIR="$("$own" -m pybind11 --cmakedir)" >/dev/null
  PATH=${own%/*}:$PATH cmake --build "$built/cmake-host-$version" \
    --target s3h_host -- --quiet
  rm -rf $packed/lib $packed/wheels
  mkdir -p $packed/lib
  for library in $built/lib/_s3h_c*.so $built/host/_s3h_host.so; do
    gzip -9c "$library" >"$packed/lib/$(basename "$library").gz"
  done
  # PyTorch 2.11 asks for setuptools before 82.
  "$own" -m pip download --quiet --disable-pip-version-check --dest $packed/wheels \
    --only-binary=:all: --python-version "$version" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
    'jsonargparse[signatures]>=4.52' 'safetensors>=0.5' 'pytest>=8' 'pytest-xdist>=3.6' \
    'hypothesis>=6.100' 'pybind11>=2.13' 'setuptools>=77,<82'
  if [ ! -f $packed/cifar100.tar.xz ] && ls "${S3H_DATA_ROOT:-/nowhere}"/cifar-100* \
    >/dev/null 2>&1; then
    "$own" -m tools.pack pack cifar100 --root "$S3H_DATA_ROOT" \
      --to $packed/cifar100.tar.xz --imbalance 100
  fi
  du -ah $packed
}

# kernels: whether the libraries of the checkout load.
kernels() {
  "$python" -c '
import sys
from s3h_ext.ops._library import CPU, CUDA
sys.exit(next((f"{x.path}: {x.error}" for x in (CPU, CUDA) if x and not x.loaded),
              None if CUDA or sys.argv[1] == "cpu" else "no CUDA library"))' $device
}

# build SECONDS: from nothing, as documented.
build() {
  step "$1" build.txt env S3H_CUDA=auto bash -c 'rm -f s3h_ext/*.so; "$@"' - \
    "$python" -m pip install --no-build-isolation --no-deps --no-index --editable .
}

setup() {
  if ! nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.limit \
    --format=csv,noheader >"$out/machine.txt" 2>&1; then
    echo "gpu-evidence: nvidia-smi finds no NVIDIA GPU on this machine" >&2
    exit 1
  fi
  if [ $device = cuda ] &&
    ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu-evidence: $python cannot use the GPU with its PyTorch; install a CUDA" \
      "build of PyTorch" >&2
    exit 1
  fi
  if [ -d $packed/wheels ] && [ ! -d $packed/site ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile \
      --target $packed/site $packed/wheels/*.whl
  fi
  # No time for a compiler where libraries were brought along and load.
  local library target
  for library in $packed/lib/*.so.gz; do
    target=s3h_ext/$(basename "$library" .gz)
    [ ! "$library" -nt "$target" ] || gunzip -c "$library" >"$target"
  done
  if ! kernels 2>"$scratch/why"; then
    say "no kernels yet: $(tail -n 1 "$scratch/why")"
    if ! build 200 || ! kernels 2>"$scratch/why"; then
      say "no kernels, so there is nothing to see: $(tail -n 1 "$scratch/why")"
      tail -n 30 "$out/build.txt"
      exit 3
    fi
  fi
  "$python" -m s3h_ext.info >>"$out/machine.txt" 2>&1
  cat "$out/machine.txt"
  if [ -f $packed/cifar100.tar.xz ] && [ -z "${S3H_DATA_ROOT:-}" ]; then
    export S3H_DATA_ROOT=$PWD/$packed/data
    [ -d "$S3H_DATA_ROOT" ] || "$python" -m tools.pack unpack cifar100 \
      $packed/cifar100.tar.xz --root "$S3H_DATA_ROOT" >/dev/null || unset S3H_DATA_ROOT
  fi
  say "the kernels load"
}

# The tests that an expression chooses, a process for each file, several at a time: an error
# of the device ends all tests of its process. A test of kernels that are not there is a
# failure, not a skip.
test_files() {
  export python scratch expression=$1 OMP_NUM_THREADS=2
  [ $device = cpu ] || export S3H_FAIL_ON_SKIP="are not built"
  grep -rlE 'mark\.cuda|on_devices' python_tests --include='test_*.py' | sort |
    xargs -P "${JOBS:-$(nproc)}" -I{} bash -c '
      workers=(); [[ {} != *test_similarity_cuda.py ]] || workers=(-n 4)
      log=$scratch/$(basename {}).log
      "$python" -m pytest -m cuda -q --tb=short --maxfail=20 "${workers[@]}" \
        -k "$expression" {} >"$log" 2>&1
      status=$?; [ $status = 5 ] && status=0  # none was chosen
      printf "%s: status %d, %s\n" {} $status "$(tail -n 1 "$log")"
      exit $status'
}

sanitizer() {
  # One allocation a tensor, so that an overrun is one.
  step 75 sanitizer.txt env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer \
    --tool "$1" --error-exitcode 9 --print-limit 20 \
    "$python" tools/gpu_evidence_times.py sanitize --device $device
  tail -n 3 "$out/sanitizer.txt"
}

stage_a() {
  setup
  measure ceilings 40
  measure similarity 80
  measure views 45
  measure prototypes 30
  step 170 tests.txt tools/gpu_evidence.sh test-files "not compile_full_graph"
  grep -E '^python_tests.*status|^FAILED' "$out/tests.txt" | head -n 40
  # Whether a kernel's message is seen though it ends in a trap.
  step 20 sanitizer.txt "$python" tools/gpu_evidence_times.py stop --device $device
  tail -n 3 "$out/sanitizer.txt"
  sanitizer memcheck
  sanitizer racecheck
  step 60 ncu.txt ncu --clock-control none --set full -c 6 \
    -k 'regex:scores_backward|triangle_forward|render' \
    "$python" tools/gpu_evidence_times.py profile --device $device
  grep -E '^ +[a-z].*\(|Duration|Compute \(SM\) Thr|L1/TEX Cache Thr|Issue Slots Busy' \
    "$out/ncu.txt" | head -n 40
  sanitizer synccheck
}

# Of photographs, whose files the GPU decodes; DALI takes some 200 MB.
dali() {
  if ! "$python" -c 'import nvidia.dali' 2>/dev/null; then
    say "DALI is not installed: decoding on the GPU was not run"
    return
  fi
  "$python" -c '
import sys
from python_tests.data.photographs import grow
grow(sys.argv[1], (24, 12, 6))
grow(sys.argv[1], (2, 2, 2), split="test")' "$scratch/photographs"
  step 60 dali.txt "$python" -m s3h_ext.train --preset folder/ce --epochs 1 --batch_size 16 \
    --model.backbone resnet18 --data.root "$scratch/photographs" --data.source dali \
    --device $device --output "$scratch/dali"
}

stage_b() {
  setup
  step 100 training.txt "$python" -m benchmarks.training_cuda --device $device \
    --preset cifar100-lt/hybrid-psc --epochs 3 --output "$out"
  tail -n 6 "$out/training.txt"
  dali
  build 100 && tail -n 3 "$out/build.txt" && kernels && "$python" -m s3h_ext.info
}

# Runs lie in a folder of many files; a few archives of at most 15 MB carry them.
stage_batch() {
  setup
  local runs=$scratch/runs part
  mkdir "$runs"
  for part in "$out" $packed; do
    if [ -f "$part/runs.tgz.aa" ]; then
      if ! cat "$part"/runs.tgz.* | tar xz -C "$runs"; then
        echo "gpu-evidence: $part/runs.tgz.* are not whole; nothing was changed" >&2
        exit 1
      fi
      break
    fi
  done
  # A checkpoint is written when a run is stopped, so few in between are enough.
  step 450 batch.txt "$python" -m benchmarks.reproduce --suite cifar100-lt \
    --seeds 0 1 2 --jobs 8 --budget "${BATCH_MINUTES:-6.5}" --output "$runs" \
    --device $device --checkpoint_every 20 ${BATCH_ARGS:-}
  # A finished run goes on no more.
  for part in "$runs"/*/summary.json; do
    [ ! -f "$part" ] || rm -rf "${part%/*}/checkpoints"
  done
  if tar cz -C "$runs" . | split -b 15m - "$out/new.tgz."; then
    rm -f "$out"/runs.tgz.*
    for part in "$out"/new.tgz.*; do mv "$part" "$out/runs.tgz.${part##*.}"; done
  else
    failed+=("packing the runs")
  fi
  tail -n 12 "$out/batch.txt"
}

stage_full() {
  setup
  local m=("$python" -m)
  step 3600 tests-compiled.txt tools/gpu_evidence.sh test-files compile_full_graph
  local name
  for name in similarity_cuda views_cuda prototypes_cuda; do
    step 3600 $name.txt "${m[@]}" benchmarks.$name --device $device --output "$out" \
      ${BENCHMARK_ARGS:-}
  done
  for name in training training_cuda profile_step; do
    step 3600 $name.txt "${m[@]}" benchmarks.$name --device $device --output "$out"
  done
  step 3600 train.txt "${m[@]}" s3h_ext.train --device $device --epochs 3 \
    --output "$out/train-$(date +%s)"
}

start=$SECONDS
[ $# -gt 0 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' tools/gpu_evidence.sh >&2; exit 2; }
if [ "$1" = test-files ]; then # a step of its own, so that it can be ended
  trap 'cat "$scratch"/*.log; rm -rf "$scratch"' EXIT
  test_files "$2"
  exit
fi
for stage; do
  start=$SECONDS
  case $stage in
    prepare) prepare; exit ;;
    a) stage_seconds=540 ;;
    b) stage_seconds=180 ;;
    batch) stage_seconds=480 ;;
    full) stage_seconds=$((1 << 30)) ;;
    *) echo "gpu-evidence: there is no stage $stage; there are prepare, a, b, batch," \
      "full" >&2; exit 2 ;;
  esac
  say "stage $stage: $("$python" -c 'import sys, torch
print("Python", sys.version.split()[0], "PyTorch", torch.__version__)' 2>&1 | tail -n 1)"
  stage_$stage
done
if [ ${#failed[@]} -gt 0 ]; then
  printf 'gpu-evidence: FAILED: %s\n' "${failed[@]}" | tee -a "$out/summary.txt" >&2
  exit 1
fi
say "all steps passed"
