#!/usr/bin/env bash
# Runs on a GPU host that has an NVIDIA driver and nothing else of ours but this folder (`cargo xtask bundle`): the tests on
# the hardware, compute-sanitizer where it is installed, then the benchmarks.
#
#   run.sh [FOLDER]    results go to FOLDER (default: results), all of them together to FOLDER/report.json
#
# $QUICK=1 leaves out compute-sanitizer and all but a few shapes. Fails if a test failed.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-results}
mkdir -p "$out"
quick=${QUICK:-0}

# cuBLASLt often comes with PyTorch only, where the loader does not look.
for folder in $(python3 -c 'import site; print("\n".join(site.getsitepackages()))' 2>/dev/null); do
  for library in "$folder"/nvidia/*/lib "$folder"/torch/lib; do
    [[ -d $library ]] && export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}${LD_LIBRARY_PATH:+:}$library"
  done
done

gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1)
commit=$(<"$here/COMMIT")
echo "$gpu, driver $driver, commit $commit"
"$here/bin/fused-lora" info | tee "$out/info.txt"

failed=0
checks=()
# check NAME SECONDS COMMAND...: runs it, keeps its output, notes how it ended.
check() {
  local name=$1 limit=$2 start=$SECONDS status=0 passed
  shift 2
  timeout "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
  passed=$(grep -c '^test .* ok$' "$out/$name.log")
  echo "$name: exit $status, $passed tests passed, $((SECONDS - start)) s"
  # What these two say of asynchronous copies and barriers in shared memory is to be read before it is believed.
  [[ $status -eq 0 || $name == racecheck-* || $name == synccheck-* ]] || failed=1
  [[ $status -eq 0 ]] || { grep -m5 -E 'panicked|FAILED|ERROR SUMMARY|Error|error:' "$out/$name.log"; }
  checks+=("{\"name\": \"$name\", \"exit\": $status, \"passed\": $passed, \"seconds\": $((SECONDS - start))}")
}

export FUSED_LORA_TEST_DEVICE=cuda FUSED_LORA_TEST_GOLDEN=$here/golden
for test in instructions decode merge adamw forward forward_tf32 dx gradients device device_decode device_forward device_backward device_options device_slot device_adamw attention device_attention transformer adapter on_device on_device_serving; do
  check "$test" 240 "$here/bin/$test" --test-threads=1
done

sanitizer=$(command -v compute-sanitizer || true)
if [[ -n $sanitizer && $quick != 1 ]]; then
  check memcheck-decode 120 "$sanitizer" --tool memcheck --report-api-errors no --error-exitcode 9 "$here/bin/decode" --test-threads=1 every_token segments matrix
  check memcheck-merge 60 "$sanitizer" --tool memcheck --report-api-errors no --error-exitcode 9 "$here/bin/merge" --test-threads=1
  check memcheck-instructions 90 "$sanitizer" --tool memcheck --report-api-errors no --error-exitcode 9 "$here/bin/instructions" --test-threads=1
  check racecheck-decode 120 "$sanitizer" --tool racecheck --error-exitcode 9 "$here/bin/decode" --test-threads=1 segments matrix
  check memcheck-forward 180 "$sanitizer" --tool memcheck --report-api-errors no --error-exitcode 9 "$here/bin/forward" --test-threads=1 segments drop
  check racecheck-forward 180 "$sanitizer" --tool racecheck --error-exitcode 9 "$here/bin/forward" --test-threads=1 segments drop
  check synccheck-decode 60 "$sanitizer" --tool synccheck --error-exitcode 9 "$here/bin/decode" --test-threads=1 segments matrix
fi

benches=()
# bench NAME ARGUMENTS...
bench() {
  local name=$1
  shift
  echo "bench $name"
  "$here/bin/fused-lora" bench --device cuda --dtype bf16 --trials 15 --json "$out/bench-$name.json" "$@" | tee "$out/bench-$name.txt" ||
    echo "bench $name did not finish" | tee -a "$out/bench-$name.txt"
  [[ -s $out/bench-$name.json ]] && benches+=("$name")
}
# table1 NAME ARGUMENTS...: the paper's table and what it leaves open.
table1() {
  local name=table1-$1
  shift
  echo "$name"
  "$here/bin/fused-lora" table1 --device cuda --json "$out/$name.json" "$@" | tee "$out/$name.txt" ||
    echo "$name did not finish" | tee -a "$out/$name.txt"
}
main_methods=none,lora-merged,lora-fused,lora-slot,lora-sequential,adapter-h,adapter-l,prefix-layer
if [[ $quick == 1 ]]; then
  table1 bf16 --dtype bf16 --trials 100 --methods $main_methods
  table1 bf16-dependent --dtype bf16 --trials 100 --methods none,lora-fused,lora-slot --dependent
else
  table1 bf16 --dtype bf16 --trials 100 --columns 1x128,16x256,32x512 --methods $main_methods
  table1 bf16-dependent --dtype bf16 --trials 100 --columns 1x128 --methods $main_methods --dependent
  table1 f32 --dtype f32 --trials 100 --columns 1x128,16x256 --methods $main_methods
  table1 f32-32x512 --dtype f32 --trials 30 --columns 32x512 --methods none,lora-fused,adapter-h,adapter-l
  table1 bf16-decode --dtype bf16 --trials 100 --decode --columns 1x128,1x1024,16x128,16x1024 --methods none,lora-fused,lora-sequential,adapter-h,adapter-l --lm-head
fi

if [[ $quick == 1 ]]; then
  bench out-in --layout out-in --tokens 1,16 --shapes 4096x4096 --ranks 16
  bench forward --layout out-in --preset forward --tokens 512,4096 --shapes 1024x3072,4096x4096 --ranks 16
else
  bench out-in --layout out-in --preset decode
  bench in-out --layout in-out --tokens 1,4,16 --shapes 1024x1024,1024x3072,1024x4096,4096x1024,4096x4096 --ranks 4,16
  bench forward --layout out-in --preset forward
  bench backward --layout out-in --preset backward
fi

{
  printf '{\n"gpu": "%s",\n"driver": "%s",\n"commit": "%s",\n"date": "%s",\n"checks": [\n' \
    "$gpu" "$driver" "$commit" "$(date -u +%FT%TZ)"
  for i in "${!checks[@]}"; do printf '%s%s\n' "${checks[$i]}" "$([[ $i -lt $((${#checks[@]} - 1)) ]] && echo ,)"; done
  printf '],\n"benchmarks": {\n'
  for i in "${!benches[@]}"; do
    printf '"%s": ' "${benches[$i]}"
    cat "$out/bench-${benches[$i]}.json"
    [[ $i -lt $((${#benches[@]} - 1)) ]] && echo ,
  done
  printf '}\n}\n'
} >"$out/report.json"
echo "all of it: $out/report.json"
exit $failed
