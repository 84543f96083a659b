#!/usr/bin/env bash
# Runs every test, C++ (ctest) and Python (pytest). From a bare clone it first makes
# .venv and builds (scripts/setup.sh).
#
#   scripts/test.sh         everything
#   scripts/test.sh quick   without what is marked slow; at most 3 minutes on 2 cores
#
# Both run even if one fails; their closing lines are repeated at the end, and the exit
# status is 0 only if both passed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build="$root/build/venv"
case "${1:-}" in
  "") ctest_selection=(-C Whole) pytest_selection=() ;;
  quick) ctest_selection=(-C Quick) pytest_selection=(-m "not slow") ;;
  *) echo "test.sh: expected nothing or 'quick', found '$1'" >&2; exit 2 ;;
esac

"$root/scripts/setup.sh" --dev
export PATH="$root/.venv/bin:$PATH"
cd "$root"

echo "[test] building the C++ tests"
# The folder of the extension module: what it has compiled is not compiled again.
cmake -S . -B "$build" -DTORCHTITAN_TESTS=ON >"$build/configure.log" ||
  { cat "$build/configure.log"; exit 1; }
cmake --build "$build" --target _C cpp_tests

status=0
# A program is one test, not a case of it, see tests/cpp/CMakeLists.txt.
ctest --test-dir "$build" --output-on-failure --no-tests=error -j "$(nproc)" \
  -L '^program$' "${ctest_selection[@]}" 2>&1 | tee "$build/ctest.log" || status=1
# Tests of one file share what they have trained. One process more than there are cores:
# many tests wait for what they have started.
python -m pytest --numprocesses "$(($(nproc) + 1))" --dist loadfile "${pytest_selection[@]}" </dev/null 2>&1 |
  tee "$build/pytest.log" || status=1

echo
echo "[test] ctest:"
sed -n '/tests passed/,$p' "$build/ctest.log"
echo "[test] pytest:"
tail -n 1 "$build/pytest.log"
exit $status
