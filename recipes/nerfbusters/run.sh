#!/bin/sh
# Nerfbusters' captures, as in Difix3D+: train on the first path (frame_1_*), test on the second (frame_2_*).
#
#   recipes/nerfbusters/run.sh DATA [OUTPUT]      DATA holds a folder for each capture, as they are published
set -eu
. "$(dirname "$0")/../published.sh"
DATA=${1:?name the folder that holds the captures}
for scene in "$DATA"/*/; do
  distill_published "${scene%/}" names:train=frame_1_,test=frame_2_ "${2:-outputs/nerfbusters}"
done
