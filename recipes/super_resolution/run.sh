#!/bin/sh
# 3DSR's experiment (Chen et al., ICCV 2025): photos made 8 times smaller, scenes 4 times larger than those.
#
#   sh recipes/super_resolution/run.sh llff-sr SCENES [OUTPUT]      or mip360-sr; SCENES holds a folder for each scene
#
#   SR=stabilityai/stable-diffusion-x4-upscaler   the super-resolver     UPDATE=posterior   or paper
#   SEEDS, METRICS, CLUSTER, MAX_FAILED, DRY_RUN and SMOKE are as in recipes/published.sh, and so is what happens to
#   scenes that fail. Run it again and it goes on where it stopped.
set -eu
. "$(dirname "$0")/../published.sh"
if [ $# -lt 2 ]; then
  refuse "write $0 llff-sr|mip360-sr SCENES [OUTPUT]; SCENES holds a folder for each scene."
fi
PROTOCOL=$1
SCENES=$2
OUTPUT=${3:-outputs/super-resolution}
check_scenes "$SCENES"
LARGER="--prior super-resolution --reduce 8 --upscale 4 --downscale bicubic ${UPDATE:+--sr-update $UPDATE}"
# the paper's weights, λ = 1
LARGER="$LARGER --loss method=1 --loss low_resolution:4:bicubic=1"
if [ -n "${SMOKE:-}" ]; then
  LARGER="$LARGER --sr ${SR:-bundled} --preset cpu --device cpu --size 256"
  LENGTH="--iterations 40 --rounds 2 --further 10"
else
  # the paper's: 30,000 iterations on small photos, then four denoising steps with 5,000 iterations after each
  LARGER="$LARGER --sr ${SR:-stabilityai/stable-diffusion-x4-upscaler} --preset gpu --device cuda"
  LENGTH="--iterations 30000 --rounds 4 --further 20000"
fi
for seed in $SEEDS; do
  # shellcheck disable=SC2086
  over_scenes difix distill "$SCENES"/*/ $LARGER $LENGTH --split test-every:8 --seed "$seed" --compare \
    --output "$OUTPUT/seed-$seed"
done
evaluate_published "$PROTOCOL" "$OUTPUT" "$OUTPUT"
exit "$SOME_FAILED"
