#!/bin/sh
# The super-resolver that comes with the package, trained again in two stages.
#
#   PHOTOS=photos SCENES="scene-a scene-b" HELD_OUT="scene-c" OUTPUT=outputs/super_resolver sh recipes/super_resolution/bundled.sh
#
# SCENES train at full size beside the folder PHOTOS; HELD_OUT are other scenes, for the model card's figures. SMOKE=1
# runs to the end at the size of a toy. DRY_RUN, MAX_FAILED and what happens to scenes that fail: recipes/scenes.sh.
set -eu
: "${PHOTOS:?}" "${SCENES:?}" "${HELD_OUT:?}" "${OUTPUT:?}"
. "$(dirname "$0")/../scenes.sh"

STEPS=3000
MORE=1100
SIDE=320
TOY=
SHAPE=
if [ -n "${SMOKE:-}" ]; then
  STEPS=2
  MORE=1
  SIDE=48
  TOY="--crop 32 --batch 1 --device cpu"
  SHAPE="--set channels=8 --set blocks=1"
fi
# shellcheck disable=SC2086
readable $HELD_OUT
HELD_OUT=$READABLE
# four 128-pixel crops a step, L1 + 0.04 st-LPIPS (AlexNet): the defaults
# shellcheck disable=SC2086
trained "$OUTPUT/first" "$OUTPUT/second" difix finetune $SCENES --max-failed "$MAX_FAILED" --task super-resolution \
  --photos "$PHOTOS" --base scratch --iterations "$STEPS" $TOY $SHAPE
# half the perceptual weight: better in both figures than the first stage
# shellcheck disable=SC2086
trained "$OUTPUT/second" "" difix finetune $SCENES --max-failed "$MAX_FAILED" --task super-resolution \
  --photos "$PHOTOS" --base "$OUTPUT/first" --iterations "$MORE" --seed 1 --learning-rate 2.5e-4 --warm-up 20 \
  --perceptual-weight 0.02 $TOY
# shellcheck disable=SC2086
run python "$(dirname "$0")/card.py" "$OUTPUT/second" "$OUTPUT/bundled" --photos "$PHOTOS" --scenes $HELD_OUT --side "$SIDE"
exit "$SOME_FAILED"
