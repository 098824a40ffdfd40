#!/bin/sh
# The super-resolver that comes with the package, trained again.
#
#   PHOTOS=photos SCENES="scene-a scene-b" HELD_OUT="scene-c" OUTPUT=outputs/super_resolver sh recipes/super_resolution/bundled.sh
#
# SCENES train at full size beside the folder PHOTOS; HELD_OUT are other scenes, for the model card's figures. SMOKE=1
# runs to the end at the size of a toy; DRY_RUN=1 prints the commands.
set -eu
: "${PHOTOS:?}" "${SCENES:?}" "${HELD_OUT:?}" "${OUTPUT:?}"
run() { if [ -n "${DRY_RUN:-}" ]; then echo "$@"; else "$@"; fi; }

TOY=
SIDE=384
if [ -n "${SMOKE:-}" ]; then
  TOY="--iterations 2 --crop 32 --batch 1 --set channels=8 --set blocks=1 --device cpu"
  SIDE=48
fi
# 3,000 steps of four 128-pixel crops, L1 + 0.04 st-LPIPS (AlexNet): the defaults
# shellcheck disable=SC2086
run difix finetune $SCENES --task super-resolution --photos "$PHOTOS" --base scratch $TOY --output "$OUTPUT/training"
# shellcheck disable=SC2086
run python "$(dirname "$0")/card.py" "$OUTPUT/training" "$OUTPUT/bundled" --photos "$PHOTOS" --scenes $HELD_OUT --side "$SIDE"
