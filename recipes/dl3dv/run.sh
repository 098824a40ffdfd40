#!/bin/sh
# DL3DV, as in Difix3D+: pairs and a fixer from the training scenes, then the test scenes: two clusters of cameras, the
# larger trains, the other tests.
#
#   recipes/dl3dv/run.sh TRAIN TEST [OUTPUT]      folders that hold a folder for each scene (112 and 28 in the paper)
#
# TRAIN may be "-": then FIXER is used as it is and nothing is trained.
set -eu
. "$(dirname "$0")/../published.sh"
TRAIN=${1:?name the folder of training scenes, or -}
TEST=${2:?name the folder of test scenes}
OUTPUT=${3:-outputs/dl3dv}
if [ "$TRAIN" != - ]; then
  # every n-th photo trains; the renders at the others are the pairs
  # shellcheck disable=SC2086
  run difix curate "$TRAIN"/*/ --strategy sparse --split every:4 --split every:8 --references 1 $GPU --output "$OUTPUT/pairs"
  # shellcheck disable=SC2086
  run difix curate "$TRAIN"/*/ --strategy underfit --stop 25% --stop 50% --stop 75% --references 1 $GPU \
    --output "$OUTPUT/pairs-underfit"
  run difix finetune "$OUTPUT/pairs" "$OUTPUT/pairs-underfit" --base "$FIXER" --iterations 10000 --learning-rate 2e-5 \
    --batch 1 --perceptual-weight 1 --device cuda --output "$OUTPUT/fixer"
  FIXER=$OUTPUT/fixer
fi
for scene in "$TEST"/*/; do
  distill_published "${scene%/}" clusters "$OUTPUT"
done
