#!/bin/sh
# Driving with a rig of three cameras, as in Difix3D+'s RDS data: the centre camera trains, the side cameras test.
#
#   recipes/rds/run.sh TRAIN TEST CENTRE [OUTPUT]      CENTRE is the centre camera's name in the scenes
#
# TRAIN may be "-": then FIXER is used as it is and nothing is trained. Else pairs come from the centre camera's model
# at the side cameras, from paths shifted sideways and back, and from trainings stopped early.
set -eu
. "$(dirname "$0")/../published.sh"
TRAIN=${1:?name the folder of training scenes, or -}
TEST=${2:?name the folder of test scenes}
CENTRE=${3:?name the centre camera}
OUTPUT=${4:-outputs/rds}
if [ "$TRAIN" != - ]; then
  # shellcheck disable=SC2086
  run difix curate "$TRAIN"/*/ --strategy cross-camera --split "camera:$CENTRE" --references 1 $GPU \
    --output "$OUTPUT/pairs-cross-camera"
  # shellcheck disable=SC2086
  run difix curate "$TRAIN"/*/ --strategy cycle --shift 1m --shift 3m --shift 6m --references 1 $GPU \
    --output "$OUTPUT/pairs-cycle"
  # shellcheck disable=SC2086
  run difix curate "$TRAIN"/*/ --strategy underfit --stop 25% --stop 50% --stop 75% --references 1 $GPU \
    --output "$OUTPUT/pairs-underfit"
  run difix finetune "$OUTPUT/pairs-cross-camera" "$OUTPUT/pairs-cycle" "$OUTPUT/pairs-underfit" --base "$FIXER" \
    --iterations 10000 --learning-rate 2e-5 --batch 1 --perceptual-weight 1 --device cuda --output "$OUTPUT/fixer"
  FIXER=$OUTPUT/fixer
fi
for scene in "$TEST"/*/; do
  distill_published "${scene%/}" "camera:$CENTRE" "$OUTPUT"
done
