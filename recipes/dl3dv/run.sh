#!/bin/sh
# DL3DV, as in Difix3D+: pairs and a fixer from the training scenes, then the test scenes: two clusters of cameras, the
# larger trains, the other tests.
#
#   sh recipes/dl3dv/run.sh TRAIN TEST [OUTPUT]      folders that hold a folder for each scene (112 and 28 in the paper)
#
# TRAIN may be "-": then FIXER is used as it is and nothing is trained. METHODS, SEEDS, METRICS, CLUSTER, MAX_FAILED and
# others: recipes/published.sh.
set -eu
. "$(dirname "$0")/../published.sh"
if [ $# -lt 2 ]; then refuse "write $0 TRAIN TEST [OUTPUT]; TRAIN and TEST hold a folder for each scene, or TRAIN is -."; fi
TRAIN=$1
TEST=$2
OUTPUT=${3:-outputs/dl3dv}
check_scenes "$TEST"
if [ "$TRAIN" != - ]; then
  check_scenes "$TRAIN"
  # every n-th photo trains; the renders at the others are the pairs
  # shellcheck disable=SC2086
  over_scenes difix curate "$TRAIN"/*/ --strategy sparse --split every:4 --split every:8 --references 1 $PAIRS \
    --output "$OUTPUT/pairs-sparse"
  # shellcheck disable=SC2086
  over_scenes difix curate "$TRAIN"/*/ --strategy underfit --stop 25% --stop 50% --stop 75% --references 1 $PAIRS \
    --output "$OUTPUT/pairs-underfit"
  # shellcheck disable=SC2086
  trained "$OUTPUT/fixer" "$OUTPUT/seed-*" difix finetune "$OUTPUT/pairs-sparse" "$OUTPUT/pairs-underfit" $TRAINING
  FIXER=$OUTPUT/fixer
fi
distill_published clusters "$OUTPUT" "$TEST"/*/
evaluate_published dl3dv "$OUTPUT" "$OUTPUT"
exit "$SOME_FAILED"
