#!/usr/bin/env bash
# Trains: by default the debug Llama 3 on the sources of Python's standard library.
# From a bare clone it first makes .venv and builds (scripts/setup.sh).
#
#   scripts/train.sh [flags of python -m torchtitan_cpp.train]
#   scripts/train.sh --training.steps 20 --optimizer.lr 1e-3
#   NGPU=2 scripts/train.sh --parallelism.data_parallel_shard_degree 2
#
# Variables, as in torchtitan's run_train.sh:
#   NGPU         number of ranks on this machine, started by torchrun; 1 needs none
#   CONFIG_FILE  TOML file of the job; default: the debug job in the package
#   LOG_RANK     ranks whose output is shown, e.g. 0,1
#   COMM_MODE    fake_backend: one process plays rank 0 of NGPU, for one step;
#                local_tensor: one process trains, its threads are the NGPU ranks
#   TRAIN_FILE   module that trains
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ngpu=${NGPU:-1}
log_rank=${LOG_RANK:-0}
train_file=${TRAIN_FILE:-torchtitan_cpp.train}
comm_mode=${COMM_MODE:-}
if ! [[ $ngpu =~ ^[1-9][0-9]*$ ]]; then
  echo "train.sh: NGPU is a number of ranks, 1 or more, found '$ngpu'" >&2
  exit 2
fi

"$root/scripts/setup.sh"
export PATH="$root/.venv/bin:$PATH"
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}

flags=("$@")
[ -z "${CONFIG_FILE:-}" ] || flags=(--job.config_file "$CONFIG_FILE" "${flags[@]}")

status=0
if [ -n "$comm_mode" ]; then
  flags+=("--comm.mode=$comm_mode")
  [ "$comm_mode" != fake_backend ] || flags+=(--training.steps=1)
  NGPU=$ngpu LOCAL_RANK=0 LOG_RANK=$log_rank \
    python -m "$train_file" "${flags[@]}" || status=$?
elif [ "$ngpu" -eq 1 ]; then
  python -m "$train_file" "${flags[@]}" || status=$?
else
  # torchrun would give each rank one thread; the ranks share the cores instead.
  cores=$(nproc)
  threads=$((cores / ngpu > 0 ? cores / ngpu : 1))
  OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads} torchrun --nproc_per_node="$ngpu" \
    --rdzv_backend c10d --rdzv_endpoint=localhost:0 \
    --local-ranks-filter "$log_rank" --role rank --tee 3 \
    -m "$train_file" "${flags[@]}" || status=$?
fi
[ $status -eq 0 ] || exit $status
# Another module has flags and files of its own.
[ "$train_file" = torchtitan_cpp.train ] || exit 0
[[ " ${flags[*]} " != *" --help "* ]] || exit 0

# The folder that the flags or the configuration name, none for a dry run; and whether
# there is a checkpoint.
{ read -r folder; read -r saved; } < <(python -c '
import sys
from pathlib import Path
from torchtitan_cpp.config import load_config
config = load_config(sys.argv[1:]).config
folder = config.job.dump_folder
print("" if config.comm.mode == "fake_backend" else folder)
print(any(Path(folder, config.checkpoint.folder).glob("step-*")))' \
  "${flags[@]}")
[ -n "$folder" ] || exit 0
# Only what the model is, and where it lies, has a meaning there; the rest does no harm.
words=("$root/.venv/bin/python" "$root/scripts/generate.py" "${flags[@]}" --prompt)
generate="$(printf '%q ' "${words[@]}")'def main('"
cat <<TEXT

The files of this run are in $folder (metrics.jsonl has one line a logged step).
What to try next:
  $0 --help                            every flag
  $0 --training.steps 50 --optimizer.lr 2e-3
  NGPU=2 $0                            two ranks, sharded
TEXT
if [ "$saved" = True ]; then
  cat <<TEXT
  $generate
                                       what the model says now
TEXT
else
  cat <<TEXT
  $0 --checkpoint.enable               saves; the same command again goes on
                                       and the saved model can be asked for text
TEXT
fi
