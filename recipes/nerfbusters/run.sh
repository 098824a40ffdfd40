#!/bin/sh
# Nerfbusters' captures, as in Difix3D+: train on the first path, test on the second.
#
#   sh recipes/nerfbusters/run.sh DATA [OUTPUT]      DATA holds a folder for each capture, as they are published
set -eu
. "$(dirname "$0")/../published.sh"
if [ $# -lt 1 ]; then refuse "write $0 DATA [OUTPUT]; DATA holds a folder for each capture."; fi
DATA=$1
OUTPUT=${2:-outputs/nerfbusters}
check_scenes "$DATA"

# how a capture's photos tell its two paths apart
paths() {
  for pair in _train_:_eval_ frame_0_:frame_1_ frame_1_:frame_2_; do
    if ls "$1"/images* | grep -q -e "${pair%:*}" && ls "$1"/images* | grep -q -e "${pair#*:}"; then
      echo "names:train=${pair%:*},test=${pair#*:}"
      return
    fi
  done
}

for scene in "$DATA"/*/; do # before hours of training
  if [ -z "$(paths "$scene" 2>/dev/null)" ]; then
    refuse "$scene has no photos of two paths: images/ with frame_train_* and frame_eval_*, or frame_1_* and frame_2_*."
  fi
done
for scene in "$DATA"/*/; do
  distill_published "${scene%/}" "$(paths "$scene")" "$OUTPUT"
done
evaluate_published "$DATA" nerfbusters "$OUTPUT"
