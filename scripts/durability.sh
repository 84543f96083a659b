#!/usr/bin/env bash
# Runs in full what scripts/test.sh runs samples of: kills of processes that save
# checkpoints together, damaged files, fuzzing of the readers, and all tests in C++ under
# sanitizers. Works in build/, in the environment of setup.sh.
#
#   scripts/durability.sh                    10,000 kills; each fuzzer for 120 seconds
#   KILLS=1000 FUZZ_SECONDS=10 SEED=7 scripts/durability.sh
#
# The seed is printed; the exit status is 0 only if all passed. Fuzzing needs clang 14
# (apt-get install clang-14) and is left out, with a word, where there is none.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
kills=${KILLS:-10000}
fuzz_seconds=${FUZZ_SECONDS:-120}
seed=${SEED:-$RANDOM}
python=${PYTHON:-$root/.venv/bin/python}
jobs=$(nproc)
without_torch=(base config mesh plan plan_schedules storage)
failed=()

step() { # step NAME COMMAND..: runs it and notes whether it failed
  local name=$1
  shift
  echo "[durability] $name"
  "$@" || failed+=("$name")
}

build() { # build PRESET TARGET..: into build/PRESET
  local preset=$1
  shift
  cmake --preset "$preset" -DPython_EXECUTABLE="$python" >"build/$preset.log" &&
    cmake --build "build/$preset" -j "$jobs" --target "$@" >>"build/$preset.log" ||
    { tail -n 30 "build/$preset.log"; return 1; }
}

fuzz() { # fuzz TARGET: goes on from the corpus; findings stay in build/fuzz
  mkdir -p "build/fuzz/found/$1"
  "build/fuzz/tests/cpp/fuzz/fuzz_$1" -max_total_time="$fuzz_seconds" -seed="$seed" \
    -max_len=4096 -print_final_stats=1 -verbosity=0 -artifact_prefix="build/fuzz/$1-" \
    "build/fuzz/found/$1" "tests/fuzz/corpus/$1" 2>&1 | grep -E "stat::|ERROR|SUMMARY|hold"
  return "${PIPESTATUS[0]}"
}

mkdir -p build
echo "[durability] seed $seed"
trials=build/asan/tests/cpp/durability/durability_trials
if build asan cpp_tests; then
  for program in build/asan/tests/cpp/*_test; do
    test=$(basename "$program" _test)
    # What torch still holds at the end of a program is not ours.
    options=detect_stack_use_after_return=1:detect_leaks=0
    [[ " ${without_torch[*]} " == *" $test "* ]] && options=${options%0}1
    step "tests of $test, address and undefined-behaviour sanitizers" \
      env ASAN_OPTIONS="allocator_may_return_null=1:$options" \
      "$program" --gtest_brief=1
  done
  for target in safetensors manifest toml; do
    step "200000 changed files for the $target reader, sanitizers" \
      "build/asan/tests/cpp/fuzz/replay_$target" --mutations 200000 --seed "$seed" \
      "tests/fuzz/corpus/$target"
  done
  step "damaged files" "$trials" corruption --flips 1000 --truncations 200 --seed "$seed"
  step "$((kills / 20)) kills, sanitizers" "$trials" kills --count "$((kills / 20))" \
    --seed "$seed"
else
  failed+=("build with sanitizers")
fi
# Most of them without sanitizers, which make a fork several times as slow.
trials=build/cpu/tests/cpp/durability/durability_trials
if build cpu durability_trials; then
  step "$kills kills" "$trials" kills --count "$kills" --seed "$seed"
  # Where blocks go past the page cache.
  step "$((kills / 10)) kills on a disk" "$trials" kills --count "$((kills / 10))" \
    --seed "$seed" --folder "$root/build"
else
  failed+=("build of the trials")
fi
if build tsan storage_test; then
  step "storage_test, thread sanitizer" build/tsan/tests/cpp/storage_test \
    --gtest_brief=1
else
  failed+=("build with the thread sanitizer")
fi
if ! command -v clang++-14 >/dev/null; then
  echo "[durability] not fuzzed: there is no clang++-14"
elif build fuzz fuzz_{safetensors,manifest,toml}; then
  for target in safetensors manifest toml; do
    step "fuzzing the $target reader" fuzz "$target"
  done
else
  failed+=("build of the fuzzers")
fi

echo
if ((${#failed[@]})); then
  printf '[durability] failed: %s\n' "${failed[@]}"
  exit 1
fi
echo "[durability] all passed"
