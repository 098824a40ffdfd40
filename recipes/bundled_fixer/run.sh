#!/bin/sh
# SCENES, HELD_OUT: scene folders, space-separated; PHOTOS: a folder of photos; OUTPUT: where everything goes. DRY_RUN,
# CLUSTER, MAX_FAILED and what happens to scenes that fail: recipes/scenes.sh.
set -eu
: "${SCENES:?}" "${HELD_OUT:?}" "${PHOTOS:?}" "${OUTPUT:?}"
. "$(dirname "$0")/../scenes.sh"

over_scenes difix curate $SCENES --method splatfacto --iterations 350 --split every:2 --split every:4 -o "$OUTPUT/pairs-350"
over_scenes difix curate $SCENES --method splatfacto --iterations 900 --split every:3 --split every:4 --seed 1 -o "$OUTPUT/pairs-900"
over_scenes difix curate $SCENES --method nerfacto --iterations 700 --split every:2 --split every:3 --split every:4 -o "$OUTPUT/pairs-nerf"
over_scenes difix curate $SCENES --strategy underfit --iterations 1200 --split every:3 -o "$OUTPUT/pairs-underfit"
over_scenes difix curate $SCENES --iterations 900 --split every:2 --split every:4 --split groups:4 -o "$OUTPUT/pairs-sparse"
over_scenes difix curate $SCENES --strategy underfit --method nerfacto --iterations 1000 --split every:3 --stop 40% --stop 75% -o "$OUTPUT/pairs-underfit-nerf"
for strategy in sparse cycle cross-camera; do
    shift_by=""
    if [ "$strategy" = cycle ]; then shift_by="--shift 2m"; fi
    over_scenes difix curate sample:street --strategy "$strategy" $shift_by --iterations 900 -o "$OUTPUT/pairs-street-$strategy"
done
several difix curate --merge "$OUTPUT"/pairs-underfit "$OUTPUT"/pairs-sparse "$OUTPUT"/pairs-underfit-nerf "$OUTPUT"/pairs-street-* \
    -o "$OUTPUT/pairs-wider"
held=""
for scene in $HELD_OUT; do held="$held --test-scene $(basename "$scene")"; done
over_scenes difix curate $HELD_OUT $held --method splatfacto --iterations 500 --split every:4 --seed 3 -o "$OUTPUT/pairs-held-out"
over_scenes difix curate $HELD_OUT $held --method nerfacto --iterations 700 --split every:4 -o "$OUTPUT/pairs-held-out-nerf"

# renders of well-trained models: from the photos of the training and of the held-out views, early and at the end
over_scenes difix curate $SCENES --strategy underfit --split every:4 --iterations 3000 --stop 27% --stop 99.9% --keep perfect --size 240 \
    -o "$OUTPUT/pairs-strong-splats"
over_scenes difix curate $SCENES --strategy underfit --method nerfacto --split every:3 --iterations 1000 --stop 70% --stop 99.9% --size 240 \
    -o "$OUTPUT/pairs-strong-nerf"
keep="--keep perfect --keep failed --keep blurred"
over_scenes difix curate $HELD_OUT $held --split test-every:8 --split every:4 --iterations 3000 --size 240 $keep -o "$OUTPUT/pairs-held-out-strong"
over_scenes difix curate $HELD_OUT $held --method nerfacto --split every:4 --iterations 1000 --size 240 $keep -o "$OUTPUT/pairs-held-out-strong-nerf"

run python "$(dirname "$0")/train.py" "$PHOTOS" "$OUTPUT"
exit "$SOME_FAILED"
