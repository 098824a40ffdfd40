#!/bin/sh
# A small fixer that looks its references up by depth and cameras (GeoQuery) beside one that has them aligned, as the
# bundled one has: the same pairs, seed and time, both from random weights, and the card's tables of both.
#
#   SCENES="scene-a scene-b" HELD_OUT="scene-c scene-d" OUTPUT=outputs/geometry sh recipes/bundled_fixer/geometry.sh
#
# ALIGNED and GEOMETRY are their steps: at 9 to 5 they take the same time. SMOKE=1 runs to the end at the size of a toy.
# DRY_RUN, CLUSTER, MAX_FAILED and what happens to scenes that fail: recipes/scenes.sh.
set -eu
: "${SCENES:?}" "${HELD_OUT:?}" "${OUTPUT:?}"
. "$(dirname "$0")/../scenes.sh"

RECONSTRUCT="--method splatfacto --iterations 450 --size 160 --depth"
TRAIN="--batch 2 --crop 64 --learning-rate 1e-3 --warm-up 10 --set schedule=constant --ema 0.97
  --perceptual-weight 0.1 --set window=32 --set improved_share=0.1 --set misled_share=0 --set idempotence_weight=0
  --set drop_references=0 --set fewer_references=0.2"
if [ -n "${SMOKE:-}" ]; then
  ALIGNED=2
  GEOMETRY=2
  RECONSTRUCT="--method splatfacto --iterations 20 --size 48 --depth --set max_gaussians=300 --keep failed"
  TRAIN="--batch 1 --crop 32 --perceptual-weight 0 --set validation_pairs=1"
fi
held=""
for scene in $HELD_OUT; do held="$held --test-scene $(basename "$scene")"; done
# shellcheck disable=SC2086
over_scenes difix curate $SCENES --strategy underfit --split every:3 --stop 45% --stop 99.9% $RECONSTRUCT -o "$OUTPUT/pairs"
# shellcheck disable=SC2086
over_scenes difix curate $HELD_OUT $held --split every:4 --seed 3 --keep perfect --keep failed --keep blurred $RECONSTRUCT \
  -o "$OUTPUT/pairs-held-out"
# shellcheck disable=SC2086
run difix finetune "$OUTPUT/pairs" "$OUTPUT/pairs-held-out" --base tiny $TRAIN --iterations "${ALIGNED:-900}" \
  -o "$OUTPUT/aligned"
# shellcheck disable=SC2086
run difix finetune "$OUTPUT/pairs" "$OUTPUT/pairs-held-out" --base tiny --set references=geometry $TRAIN \
  --iterations "${GEOMETRY:-500}" -o "$OUTPUT/geometry"
for fixer in bundled "$OUTPUT/aligned" "$OUTPUT/geometry"; do
  run python "$(dirname "$0")/card.py" "$OUTPUT/pairs-held-out" --fixer "$fixer" --views 5
done
exit "$SOME_FAILED"
