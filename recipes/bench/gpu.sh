#!/usr/bin/env bash
# All that needs a GPU in one run of at most eight minutes: tests/gpu, then what is measured, into one file.
#   recipes/bench/gpu.sh [RESULTS.txt] [SCENE]      SCENE: posed photos, default the sample room
# Each part has its own limit, and one that fails or takes longer stops none of the others.
set -uo pipefail
cd "$(dirname "$0")/../.."
results=${1:-gpu_results.txt}
scene=${2:-sample:room}
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}"
: >"$results"

part() { # SECONDS NAME COMMAND...
  local limit=$1 name=$2 begun=$SECONDS
  shift 2
  echo "## $name" | tee -a "$results"
  timeout "$limit" "$@" 2>&1 | tee -a "$results"
  echo "($name: exit code ${PIPESTATUS[0]}, $((SECONDS - begun)) s)" | tee -a "$results"
}

part 150 tests "$python" -m pytest tests/gpu -n 8 --dist load -rA -p no:cacheprovider
part 40 splats "$python" recipes/bench/gpu.py splats
part 120 precisions "$python" recipes/bench/fixer.py gpu --dtype bf16 --batch 1 8
part 60 steps "$python" recipes/bench/gpu.py steps --scene "$scene"
part 40 pace "$python" recipes/bench/fixer.py pace
part 30 "large frames" "$python" recipes/bench/gpu.py frames
part 90 "whole runs" "$python" recipes/bench/gpu.py run --scene "$scene" --size 320
