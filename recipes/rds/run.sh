#!/bin/sh
# Driving with a rig of three cameras, as in Difix3D+'s RDS data: the centre camera trains, the side cameras test.
#
#   sh recipes/rds/run.sh TRAIN TEST CENTRE [OUTPUT]      CENTRE is the centre camera's name in the scenes
#
# TRAIN may be "-": then FIXER is used as it is and nothing is trained. Else pairs come from the centre camera's model
# at the side cameras, from paths shifted sideways and back, and from trainings stopped early. METHODS, SEEDS, METRICS,
# CLUSTER, MAX_FAILED and others: recipes/published.sh.
set -eu
. "$(dirname "$0")/../published.sh"
if [ $# -lt 3 ]; then
  refuse "write $0 TRAIN TEST CENTRE [OUTPUT]; TRAIN and TEST hold a folder for each scene, or TRAIN is -."
fi
TRAIN=$1
TEST=$2
CENTRE=$3
OUTPUT=${4:-outputs/rds}
check_scenes "$TEST"
if [ "$TRAIN" != - ]; then
  check_scenes "$TRAIN"
  # shellcheck disable=SC2086
  over_scenes difix curate "$TRAIN"/*/ --strategy cross-camera --split "camera:$CENTRE" --references 1 $PAIRS \
    --output "$OUTPUT/pairs-cross-camera"
  # shellcheck disable=SC2086
  over_scenes difix curate "$TRAIN"/*/ --strategy cycle --shift 1m --shift 3m --shift 6m --references 1 $PAIRS \
    --output "$OUTPUT/pairs-cycle"
  # shellcheck disable=SC2086
  over_scenes difix curate "$TRAIN"/*/ --strategy underfit --stop 25% --stop 50% --stop 75% --references 1 $PAIRS \
    --output "$OUTPUT/pairs-underfit"
  # shellcheck disable=SC2086
  trained "$OUTPUT/fixer" "$OUTPUT/seed-*" difix finetune "$OUTPUT/pairs-cross-camera" "$OUTPUT/pairs-cycle" \
    "$OUTPUT/pairs-underfit" $TRAINING
  FIXER=$OUTPUT/fixer
fi
distill_published "camera:$CENTRE" "$OUTPUT" "$TEST"/*/
evaluate_published rds "$OUTPUT" "$OUTPUT"
exit "$SOME_FAILED"
