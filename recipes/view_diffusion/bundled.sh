#!/bin/sh
# A view-conditioned diffusion model as the package could bundle it.
#
#   SCENES="scene-a scene-b" PHOTOS=photos HELD_OUT="scene-c" OUTPUT=outputs/view_diffusion sh recipes/view_diffusion/bundled.sh
#
# SCENES train at a long side of 128 pixels, the folder PHOTOS beside them for the autoencoder; HELD_OUT are other scenes,
# for the model card's figures. TIME is the seconds that the three networks train together, on a GPU. SMOKE=1 runs to the
# end at the size of a toy. DRY_RUN, MAX_FAILED and what happens to scenes that fail: recipes/scenes.sh.
set -eu
: "${PHOTOS:?}" "${SCENES:?}" "${HELD_OUT:?}" "${OUTPUT:?}"
. "$(dirname "$0")/../scenes.sh"

SIZE="--set seconds=${TIME:-300} --iterations 40000 --dtype bf16"
CARD=
if [ -n "${SMOKE:-}" ]; then
  SIZE="--iterations 1 --batch 1 --device cpu --set canvas=32 --set size=32 --set width=8 --set depths=4"
  SIZE="$SIZE --set latent_channels=2 --set unet_width=32 --set window=16 --set diffusion_window=24 --set pictures=2"
  SIZE="$SIZE --set repeats=1 --set validation_views=1"
  CARD="--size 32 --count 2 --views 2"
fi
# shellcheck disable=SC2086
readable $HELD_OUT
HELD_OUT=$READABLE
# shellcheck disable=SC2086
trained "$OUTPUT/trained" "" difix finetune $SCENES --max-failed "$MAX_FAILED" --task view-diffusion --photos "$PHOTOS" \
  --base scratch $SIZE
# shellcheck disable=SC2086
run python "$(dirname "$0")/card.py" "$OUTPUT/trained" "$OUTPUT/bundled" --scenes $HELD_OUT $CARD
exit "$SOME_FAILED"
