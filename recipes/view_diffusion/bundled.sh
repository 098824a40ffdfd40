#!/bin/sh
# The view-conditioned diffusion model that comes with the package, trained again.
#
#   SCENES="scene-a scene-b" PHOTOS=photos OUTPUT=outputs/view_diffusion sh recipes/view_diffusion/bundled.sh
#
# SCENES train with a long side of 128 pixels, the folder PHOTOS beside them for the autoencoder. SECONDS_ALL is the time
# for all three networks. SMOKE=1 runs to the end at the size of a toy; DRY_RUN=1 prints the command.
set -eu
: "${SCENES:?}" "${PHOTOS:?}" "${OUTPUT:?}"
run() { if [ -n "${DRY_RUN:-}" ]; then echo "$@"; else "$@"; fi; }

SIZE="--set seconds=${SECONDS_ALL:-300} --set epipolar_iterations=40000 --set vae_iterations=40000 --set diffusion_iterations=40000 --dtype bf16"
if [ -n "${SMOKE:-}" ]; then
  SIZE="--iterations 1 --batch 1 --device cpu --set canvas=32 --set size=32 --set width=8 --set depths=4"
  SIZE="$SIZE --set latent_channels=2 --set unet_width=32 --set window=16 --set diffusion_window=24 --set pictures=2"
  SIZE="$SIZE --set repeats=1 --set validation_views=1"
fi
# shellcheck disable=SC2086
run ${PYTHON:-python} -m difixcli finetune $SCENES --task view-diffusion --photos "$PHOTOS" --base scratch $SIZE --output "$OUTPUT"
