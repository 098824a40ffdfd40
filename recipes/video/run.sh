#!/bin/sh
# A video model: clips of posed scenes, then ReconX's two stages around the bundled fixer.
#
#   SCENES="scene-a scene-b" HELD_OUT="scene-c" OUTPUT=outputs/video sh recipes/video/run.sh
#
# HELD_OUT are other scenes, by which the best weights are chosen. TIME is the seconds of training. SMOKE=1 runs to the
# end at the size of a toy. DRY_RUN, CLUSTER, MAX_FAILED and what happens to scenes that fail: recipes/scenes.sh.
set -eu
: "${SCENES:?}" "${HELD_OUT:?}" "${OUTPUT:?}"
. "$(dirname "$0")/../scenes.sh"

CLIPS="--size 128 --iterations 250 --split every:5"
TRAIN="--batch 1 --perceptual-weight 0.5 --set spatial_learning_rate=0 --set seconds=${TIME:-1800}"
if [ -n "${SMOKE:-}" ]; then
  CLIPS="--size 48 --iterations 2 --split every:3 --set max_gaussians=200"
  TRAIN="--batch 1 --perceptual-weight 0 --iterations 1 --set structure_iterations=1 --set validation_clips=1"
fi
# shellcheck disable=SC2086
over_scenes difix curate $SCENES --strategy clips $CLIPS --output "$OUTPUT/clips"
# shellcheck disable=SC2086
over_scenes difix curate $HELD_OUT --strategy clips $CLIPS --test-scene '*' --output "$OUTPUT/held-out"
# shellcheck disable=SC2086
trained "$OUTPUT/trained" "" difix finetune "$OUTPUT/clips" "$OUTPUT/held-out" --task video $TRAIN
exit "$SOME_FAILED"
