#!/usr/bin/env bash
# Runs what takes too long for every change, and prints which passed:
#
#   * every row of torchtitan's feature tests (tests/python/integration/feature_rows.py) as
#     a user would start it, by torchrun with up to 8 ranks;
#   * SIGTERM in every phase of a run, to a rank, to all and to the launcher;
#   * 60 runs that are killed twice and go on with other ranks, in other layouts;
#   * the memory of large batches beside its prediction, with more checkpointing modes;
#   * 50 jobs of torchrun that are killed at random times and start again by themselves;
#   * a save of every format that is killed or fails at every time it reaches a point;
#   * scripts/durability.sh.
#
# From a bare clone it first makes .venv and builds (scripts/setup.sh).
#
#   scripts/nightly.sh              all of it
#   scripts/nightly.sh -k pp_zbv    some, or whatever pytest takes; no more
#
# The exit status is 0 only if all passed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/scripts/setup.sh" --dev
export PATH="$root/.venv/bin:$PATH"
cd "$root"

report=build/nightly.xml
rm -f "$report"
status=0
python -m pytest --nightly --verbose --junitxml "$report" "$@" \
  tests/python/integration/test_feature_table.py \
  tests/python/integration/test_stop_requests.py \
  tests/python/integration/test_plan_memory.py \
  tests/python/integration/test_elastic_resume.py \
  tests/python/integration/test_kills.py </dev/null || status=1

echo
echo "[nightly] result, seconds, row:"
python - "$report" <<'PYTHON'
import sys
from xml.etree import ElementTree

for case in ElementTree.parse(sys.argv[1]).iter("testcase"):
    result = "failed" if case.find("failure") is not None else "passed"
    result = "broken" if case.find("error") is not None else result
    row = case.attrib["name"].partition("[")[2].removesuffix("]")
    name = case.attrib["name"].partition("[")[0].removeprefix("test_")
    shown = f"{name} {row}" if "feature_table" not in case.attrib["classname"] else row
    print(f"{result}  {float(case.attrib['time']):6.1f}  {shown or name}")
PYTHON
if (($# == 0)); then
  # The folder of the extension module: what it has compiled is not compiled again.
  { cmake -S . -B build/venv -DTORCHTITAN_TESTS=ON >build/faults.log &&
      cmake --build build/venv --target module_with_faults >>build/faults.log &&
      python tests/durability/formats.py --seed "$RANDOM" \
        --module build/venv/tests/cpp/durability/_C*.so; } || status=1
  scripts/durability.sh || status=1
fi
exit $status
