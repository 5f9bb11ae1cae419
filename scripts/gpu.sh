#!/usr/bin/env bash
# Runs the tests and benchmarks on a GPU host. The host needs an NVIDIA driver and this folder, made by `cargo xtask bundle`.
#
#   run.sh [FOLDER]    results go to FOLDER (default: results)
#
# The most informative steps come first: a few checks of every family of kernels, the quick benchmarks, then all checks,
# compute-sanitizer if it is installed, and the long benchmarks. Every step has its own time limit and writes its output to
# disk while it runs. After each step, FOLDER/summary.txt and FOLDER/report.json describe all steps so far, so the script
# can be stopped at any time.
#
#   $BUDGET  seconds for all steps (default: no limit): a step that may not end in time is skipped
#   $QUICK   1: stop after the quick benchmarks
#   $SMALL   1: every step with small sizes and long limits, and the kernels' own tests listed instead of run. So `cargo xtask
#            stand-in` finds mistakes of this script on a machine without a GPU.
#
# The exit status is 1 if a step failed.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-results}
budget=${BUDGET:-0}
quick=${QUICK:-0}
small=${SMALL:-0}
mkdir -p "$out"
export FUSED_LORA_IMAGES=$here/images

# cuBLASLt is often installed as a part of PyTorch only, in a folder that the dynamic loader does not search.
for folder in $(python3 -c 'import site; print("\n".join(site.getsitepackages()))' 2>/dev/null); do
  for library in "$folder"/nvidia/*/lib "$folder"/torch/lib; do
    [[ -d $library ]] && export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}${LD_LIBRARY_PATH:+:}$library"
  done
done

ask() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -1; }
gpu=$(ask name)
driver=$(ask driver_version)
commit=$(<"$here/COMMIT")
date=$(date -u +%FT%TZ)
head="${gpu:-no GPU found by nvidia-smi}, driver ${driver:-unknown}, commit $commit, $date"

lines=()  # lines of the summary
steps=()  # steps of the report, as JSON objects
failed=0

# Writes both files again. Each is renamed into place, so that a reader never sees a partial file.
report() {
  {
    echo "$head"
    printf '%s\n' "${lines[@]}"
  } >"$out/.summary" && mv "$out/.summary" "$out/summary.txt"
  {
    printf '{\n"gpu": "%s",\n"driver": "%s",\n"commit": "%s",\n"date": "%s",\n"steps": [\n' "$gpu" "$driver" "$commit" "$date"
    local i
    for i in "${!steps[@]}"; do printf '%s%s\n' "${steps[$i]}" "$([[ $i -lt $((${#steps[@]} - 1)) ]] && echo ,)"; done
    printf ']\n}\n'
  } >"$out/.report" && mv "$out/.report" "$out/report.json"
}

note() {
  lines+=("$1")
  echo "$1"
}

# step NAME SECONDS COMMAND...: runs a command with a time limit and its output in NAME.log; returns its exit status.
step() {
  local name=$1 limit=$2 start=$SECONDS status=0
  shift 2
  [[ $small == 1 ]] && limit=$((20 * limit))
  if [[ $budget -gt 0 && $((SECONDS + limit)) -gt $budget ]]; then
    note "$name: skipped, too little time left for its limit of $limit s"
    steps+=("{\"name\": \"$name\", \"left_out\": true}")
    report
    return 0
  fi
  timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
  last_seconds=$((SECONDS - start))
  return $status
}

# check NAME SECONDS COMMAND...: a step that runs tests.
check() {
  local name=$1 status=0 passed
  last_seconds=-1
  step "$@" || status=$?
  [[ $last_seconds -lt 0 ]] && return
  passed=$(grep -cE '^test .* ok$|: test$' "$out/$name.log")
  # A filter that no test's name contains any more runs nothing, which must not pass.
  [[ $status -ne 0 || $passed -gt 0 ]] || status=99
  note "$name: exit $status, $passed tests passed, $last_seconds s"
  # racecheck and synccheck may give false alarms for asynchronous copies and barriers in shared memory: their reports need
  # to be read, and do not make the script fail.
  [[ $status -eq 0 || $name == racecheck-* || $name == synccheck-* ]] || failed=1
  # Adds the place and the message of the first failure to the summary.
  [[ $status -eq 0 ]] || while IFS= read -r line; do note "    ${line:0:200}"; done \
    < <(grep -m1 -A1 -E 'panicked at|ERROR SUMMARY|error:' "$out/$name.log")
  steps+=("{\"name\": \"$name\", \"exit\": $status, \"passed\": $passed, \"seconds\": $last_seconds}")
  report
}

# measure NAME SECONDS ARGUMENTS...: a step that runs a benchmark of the command, with its results in NAME.json.
measure() {
  local name=$1 limit=$2 status=0
  shift 2
  last_seconds=-1
  step "$name" "$limit" "$here/bin/fused-lora" "$@" --json "$out/$name.json" || status=$?
  [[ $last_seconds -lt 0 ]] && return
  note "$name: exit $status, $last_seconds s"
  [[ $status -eq 0 ]] || failed=1
  [[ $status -eq 0 ]] || note "    $(grep -m1 -E 'error|panicked' "$out/$name.log" | cut -c1-200)"
  steps+=("{\"name\": \"$name\", \"exit\": $status, \"json\": $([[ -s $out/$name.json ]] && echo true || echo false), \"seconds\": $last_seconds}")
  report
}

# shrink SIZES... -- ARGUMENTS...: the arguments, with these sizes in the place of their own.
shrink() {
  local sizes=() named=()
  while [[ $1 != -- ]]; do sizes+=("$1"); shift; done
  shift
  while [[ $# -gt 0 ]]; do
    case $1 in
      --shapes | --tokens | --ranks | --columns | --trials) shift 2 ;;
      *) named+=("$1"); shift ;;
    esac
  done
  arguments=("${named[@]}" "${sizes[@]}")
}

bench() {
  arguments=(--trials 15 "${@:3}")
  [[ $small == 1 ]] && shrink --shapes 64x96 --tokens 1,20 --ranks 4 --trials 2 -- "${@:3}"
  measure "bench-$1" "$2" bench --device cuda --dtype bf16 "${arguments[@]}"
}
table1() {
  arguments=("${@:3}")
  [[ $small == 1 ]] && shrink --model "$here/golden/model" --params 4000 --columns 1x2 --trials 2 -- "${@:3}"
  measure "table1-$1" "$2" table1 --device cuda "${arguments[@]}"
}
tests() { check "$1" "$2" "$here/bin/tests" --test-threads=1 "${@:3}"; }
model_tests() { check "$1" "$2" "$here/bin/gpt2-tests" --test-threads=1 "${@:3}"; }
# Tests of kernels alone: with small sizes they are listed only, because the emulator runs them elsewhere. Decode and the
# instructions stand for all others then.
kernel_tests() {
  local list=()
  [[ $small == 1 ]] && list=(--list)
  tests "$@" "${list[@]}"
}

export FUSED_LORA_TEST_DEVICE=cuda FUSED_LORA_TEST_GOLDEN=$here/golden
note "$("$here/bin/fused-lora" info 2>&1 | head -20)"
report

# About one minute of tests of every family of kernels.
tests quick-instructions 15 instructions::warp instructions::memory instructions::matrix instructions::wgmma instructions::tma
tests quick-decode 10 lora::decode::odd_shapes lora::decode::matrix_instructions
kernel_tests quick-forward 15 lora::forward::odd_shapes lora::forward::clusters_share lora::forward::every_tile
kernel_tests quick-backward 10 lora::dx::every_tile lora::dx::odd lora::gradients::every_rank lora::gradients::segments
tests quick-others 10 lora::merge:: optim::adamw::steps adapter:: transformer::attention::queries_before transformer::attention::rows_start transformer::rows::
model_tests quick-model 15 on_device::every

methods=none,lora-merged,lora-fused,lora-slot,lora-sequential,adapter-h,adapter-l,prefix-layer
bench quick-decode 60 --layout out-in --tokens 1,4,16 --shapes 4096x4096 --ranks 16
bench quick-forward 60 --layout out-in --preset forward --tokens 512,4096 --shapes 1024x3072,4096x4096 --ranks 16
table1 quick 90 --dtype bf16 --trials 100 --methods $methods
table1 quick-dependent 60 --dtype bf16 --trials 100 --methods none,lora-fused,lora-slot --dependent

if [[ $quick != 1 ]]; then
  for suite in instructions lora::decode lora::forward lora::forward_tf32 lora::dx lora::gradients lora::merge \
    transformer::attention transformer::rows optim::adamw adapter ladder; do
    kernel_tests "${suite//::/-}" 120 "$suite::"
  done
  for suite in calls forward forward_options forward_refusals backward row_ends dependent order slot optim attention; do
    tests "device-$suite" 60 "device::$suite::"
  done
  tests examples 60 examples::
  for suite in on_device on_device_serving; do
    model_tests "$suite" 120 "$suite::"
  done

  sanitizer=$(command -v compute-sanitizer || true)
  if [[ -n $sanitizer ]]; then
    sanitize() {
      local tool=$1 name=$2 limit=$3
      shift 3
      check "$tool-$name" "$limit" "$sanitizer" --tool "$tool" --report-api-errors no --error-exitcode 9 "$here/bin/tests" --test-threads=1 "$@"
    }
    sanitize memcheck decode 120 lora::decode::every_token lora::decode::segments lora::decode::matrix
    sanitize memcheck forward 180 lora::forward::segments lora::forward::drop
    sanitize memcheck merge 60 lora::merge::
    sanitize memcheck instructions 90 instructions::
    sanitize racecheck decode 120 lora::decode::segments lora::decode::matrix
    sanitize racecheck forward 180 lora::forward::segments lora::forward::drop
    sanitize synccheck decode 60 lora::decode::segments lora::decode::matrix
  fi

  bench out-in 300 --layout out-in --preset decode
  bench forward 300 --layout out-in --preset forward
  bench backward 300 --layout out-in --preset backward
  table1 bf16 300 --dtype bf16 --trials 100 --columns 1x128,16x256,32x512 --methods $methods
  table1 bf16-dependent 120 --dtype bf16 --trials 100 --columns 1x128 --methods $methods --dependent
  table1 bf16-decode 300 --dtype bf16 --trials 100 --decode --columns 1x128,1x1024,16x128,16x1024 \
    --methods none,lora-fused,lora-sequential,adapter-h,adapter-l --lm-head
  table1 f32 300 --dtype f32 --trials 100 --columns 1x128,16x256 --methods $methods
  table1 f32-32x512 300 --dtype f32 --trials 30 --columns 32x512 --methods none,lora-fused,adapter-h,adapter-l
  bench in-out 300 --layout in-out --tokens 1,4,16 --shapes 1024x1024,1024x3072,1024x4096,4096x1024,4096x4096 --ranks 4,16
fi

echo "summary: $out/summary.txt, full report: $out/report.json"
exit $failed
