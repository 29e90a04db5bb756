#!/bin/sh
# Everything that a machine with a GPU can tell, in under ten minutes and without a network: build, tests, sanitizers,
# benchmarks. Run by `make gpu`. Goes on after a failure, but for one of the build; the exit code is the number of steps
# that failed.
#
#   RESULTS   folder for log.txt, what tests and sanitizers beside others say, ops-cuda.json, speed.json and video.json
#             (default: build/gpu)
#   PYTHON    interpreter with a CUDA torch, NumPy, Pillow, setuptools, pybind11, ninja, cmake, pytest and hypothesis
#   WHEELS    folder of wheels to use besides, from the root of this tree: with av's, files are decoded and pooled, too,
#             which takes a minute more; with those of pytest-xdist and execnet, tests run eight at a time
#   SECONDS_ALLOWED   for all of it (default: 570)
set -u
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
RESULTS="${RESULTS:-build/gpu}"
mkdir -p "$RESULTS"
RESULTS=$(cd "$RESULTS" && pwd)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 DYNPOOL_REQUIRE_CUDA=1 DYNPOOL_REQUIRE_EXT=1
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
bare=$PYTHONPATH
for wheel in ${WHEELS:+"$WHEELS"/*.whl}; do
  "$PYTHON" -m zipfile -e "$wheel" "$logs/packages" || exit 1
  PYTHONPATH="$bare:$logs/packages"
done
: > "$RESULTS/log.txt"
failed=0
began=$(date +%s)

missing=$(PYTHONPATH=$bare "$PYTHON" - <<'PY'
import importlib.util, shutil, sysconfig
scripts = sysconfig.get_path("scripts")
modules = ("torch", "numpy", "PIL", "setuptools", "pybind11", "pytest", "hypothesis")
tools = ("cmake", "ninja")
print(*(m for m in modules if importlib.util.find_spec(m) is None),
      *(t for t in tools if not (shutil.which(t, path=scripts) or shutil.which(t))))
PY
) || exit 1
if [ -n "$missing" ]; then
  echo "$PYTHON lacks what this needs: $missing" >&2
  exit 1
fi

seconds_left() {  # of so many, as far as all of it has so many
  left=$((${SECONDS_ALLOWED:-570} - $(date +%s) + began))
  if [ "$left" -lt 1 ]; then left=1; fi
  if [ "$1" -lt "$left" ]; then echo "$1"; else echo "$left"; fi
}

step() {  # name, seconds allowed, command…
  name=$1 limit=$(seconds_left "$2")
  shift 2
  printf '\n=== %s (at %d s) ===\n' "$name" $(($(date +%s) - began))
  timeout -s INT -k 10 "$limit" "$@" > "$logs/step" 2>&1  # on which pytest says what has failed
  report "$name" $? "$logs/step"
}

report() {  # name, exit code, its output: the end of it is shown, and all of it kept
  name=$1 code=$2
  tail -n "${LINES_SHOWN:-15}" "$3"
  if [ $code -ne 0 ]; then
    failed=$((failed + 1))
    echo "FAILED: $name, exit code $code (124: out of time)" | tee -a "$3"
  fi
  printf '\n=== %s ===\n' "$name" >> "$RESULTS/log.txt"
  cat "$3" >> "$RESULTS/log.txt"
}

if command -v nvidia-smi >/dev/null; then
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  if [ -z "${DYNPOOL_CUDA_ARCHS:-}${TORCH_CUDA_ARCH_LIST:-}" ]; then  # for the cards that are here alone
    DYNPOOL_CUDA_ARCHS=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sort -u | paste -sd ';' -)
    export DYNPOOL_CUDA_ARCHS
  fi
else
  echo "no nvidia-smi"
fi

step build 150 "$PYTHON" setup.py build_ext --inplace
if [ $failed -ne 0 ]; then exit 1; fi  # plain torch would be tested and timed
# What needs no GPU is tested beside what does, and sanitizers look on; all is over before anything is timed.
printf '%s\n' tests/test_*.py | PYTHONPATH=$bare CUDA_VISIBLE_DEVICES='' OMP_NUM_THREADS=2 \
  timeout "$(seconds_left 240)" xargs -P 6 -n 4 \
  sh -c '"$@" || [ $? -eq 5 ]' sh "$PYTHON" -m pytest -q -p no:cacheprovider -k "not (cuda or gpu)" \
  > "$RESULTS/tests-cpu.txt" 2>&1 &  # 5: files that are skipped as a whole, for want of packages
cpu_tests=$!
sanitize() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -k 5 "$(seconds_left 235)" compute-sanitizer --tool "$1" \
    --kernel-regex kns=dynpool --error-exitcode 1 "$PYTHON" tests/sanitize.py > "$RESULTS/$1.txt" 2>&1
}
if command -v compute-sanitizer >/dev/null; then
  sanitize memcheck &
  memcheck=$!
  sanitize racecheck &
  racecheck=$!
else
  echo "no compute-sanitizer: skipped"
  step sanitize 50 "$PYTHON" tests/sanitize.py
fi
workers=""
if "$PYTHON" -c "import xdist" 2>/dev/null; then workers="-n 8"; fi
# shellcheck disable=SC2086
step tests 235 "$PYTHON" -m pytest -q -p no:cacheprovider $workers -k "cuda or gpu" tests
for name in ${memcheck:+memcheck} ${racecheck:+racecheck} tests-cpu; do
  case $name in memcheck) wait "$memcheck" ;; racecheck) wait "$racecheck" ;; *) wait $cpu_tests ;; esac
  code=$?
  printf '\n=== %s (since the tests began, at %d s) ===\n' $name $(($(date +%s) - began))
  report $name $code "$RESULTS/$name.txt"
done
if "$PYTHON" -c "import av" 2>/dev/null; then
  LINES_SHOWN=50 step video 60 "$PYTHON" benchmarks/video.py --quick --json "$RESULTS/video.json"
fi
limit=$(($(seconds_left 240) - 50))  # for what follows
if [ $limit -lt 1 ]; then limit=1; fi
LINES_SHOWN=100 step benchmark $limit "$PYTHON" benchmarks/ops_cuda.py --json "$RESULTS/ops-cuda.json"
if command -v cuobjdump >/dev/null; then
  step resources 10 sh -c "cuobjdump --dump-resource-usage dynpool/_C*.so"
fi
LINES_SHOWN=40 step exact 40 "$PYTHON" benchmarks/speed.py --generate --quick --json "$RESULTS/speed.json"

printf '\n%d steps failed, %d s; log and JSON in %s\n' $failed $(($(date +%s) - began)) "$RESULTS"
exit $failed
