#!/bin/sh
# SCENES, HELD_OUT: scene folders, space-separated; PHOTOS: a folder of photos; OUTPUT: where everything goes.
set -eu
: "${SCENES:?}" "${HELD_OUT:?}" "${PHOTOS:?}" "${OUTPUT:?}"
mkdir -p "$OUTPUT"

difix curate $SCENES --method splatfacto --iterations 350 --split every:2 --split every:4 -o "$OUTPUT/pairs-350"
difix curate $SCENES --method splatfacto --iterations 900 --split every:3 --split every:4 --seed 1 -o "$OUTPUT/pairs-900"
difix curate $SCENES --method nerfacto --iterations 700 --split every:2 --split every:3 --split every:4 -o "$OUTPUT/pairs-nerf"
held=""
for scene in $HELD_OUT; do held="$held --test-scene $(basename "$scene")"; done
difix curate $HELD_OUT $held --method splatfacto --iterations 500 --split every:4 --seed 3 -o "$OUTPUT/pairs-held-out"
difix curate $HELD_OUT $held --method nerfacto --iterations 700 --split every:4 -o "$OUTPUT/pairs-held-out-nerf"

python "$(dirname "$0")/train.py" "$PHOTOS" "$OUTPUT"
