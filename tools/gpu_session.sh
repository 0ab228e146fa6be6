#!/usr/bin/env bash
# All that a GPU is needed for, in one go: build for the
# GPU that is there, its tests, compute-sanitizer where there is one, the benchmarks with their
# tables saved, and a short table last. A step that fails does not stop the next.
#
#   tools/gpu_session.sh [step ...]
#
# Steps: build, doctor, tests, memcheck, racecheck, synccheck, and the names of benchmarks/bench_*.py.
# All of them may take half an hour; most of that is torch.compile, see BENCH_ARGS.
#   PYTHON      an interpreter with PyTorch for CUDA and the project's other needs; unset or without
#               them: `make build` makes one
#   BENCH_ARGS  for every benchmark, for instance "--seconds 0.1 --shapes 3"
#   OUT         the logs' folder (default: output/gpu_session)
set -uo pipefail
cd "$(dirname "$0")/.."
wanted=" $* "
read -ra bench_args <<<"${BENCH_ARGS:-}"
out=${OUT:-output/gpu_session}
mkdir -p "$out"
summary=()

# step NAME COMMAND...: runs it, if it is wanted, into NAME.log and keeps what came of it.
step() {
  local name=$1 start=$SECONDS state=ok
  shift
  [[ $wanted == "  " || $wanted == *" $name "* ]] || return 0
  echo "== $name"
  "$@" >"$out/$name.log" 2>&1 || state="failed ($?)"
  tail -n 3 "$out/$name.log"
  summary+=("$(printf '%-26s %-14s %4d s' "$name" "$state" $((SECONDS - start)))")
}

python=${PYTHON:-python3}
if ! "$python" -c 'import torch, detectron2; assert torch.cuda.is_available()' 2>/dev/null; then
  make build
  python=.venv/bin/python
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
capability=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || {
  echo "error: PyTorch sees no CUDA device." >&2
  exit 1
}
TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability} PSIS_D2_BUILD_CUDA=1 \
  step build "$python" setup.py build_ext --inplace
step doctor "$python" -m psis_d2 doctor
step tests "$python" -m pytest -q -m gpu tests
if command -v compute-sanitizer >/dev/null; then
  # Small maps of every kernel: the tools slow a kernel down a hundred times.
  for tool in memcheck racecheck synccheck; do
    step "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$python" -m pytest -q -m gpu tests/ops -k "repeatable or not_contiguous"
  done
else
  summary+=("compute-sanitizer          not installed")
fi
for script in benchmarks/bench_*.py; do
  step "$(basename "$script" .py)" "$python" "$script" --device cuda --save "${bench_args[@]}"
done
cp -r benchmarks/results "$out"/ 2>/dev/null

echo
for script in benchmarks/bench_*.py; do
  log=$out/$(basename "$script" .py).log
  [[ -e $log ]] && grep -E '^(case|model) |  ours|  on  ' "$log" | awk '!seen[$0]++'
done
printf '%s\n' "" "${summary[@]}"
printf '%s\n' "${summary[@]}" >"$out/summary.txt"
! grep -q failed "$out/summary.txt"
