#!/bin/sh
# Scenes of a few photos: SparseFusion's two views of CO3D, and 3, 6 and 9 views of Mip-NeRF 360 as ReconX has them.
#
#   sh recipes/sparse_views/run.sh co3d CATEGORY [OUTPUT]       CATEGORY is a category's folder, as CO3D is published
#   sh recipes/sparse_views/run.sh mip360 SCENES [OUTPUT]       SCENES holds a folder for each scene, with COLMAP's model
#
#   PRIOR   what proposes views (fixer)     VIEWS   how many photos train, of 2, 3, 6 and 9 (mip360: 3 6 9)
#   METHODS, SEEDS, FIXER, METRICS, CLUSTER, MAX_FAILED, DRY_RUN and SMOKE are as in recipes/published.sh, and so is what
#   happens to scenes that fail. Run it again and it goes on where it stopped.
set -eu
. "$(dirname "$0")/../published.sh"
if [ $# -lt 2 ]; then refuse "write $0 co3d CATEGORY [OUTPUT], or $0 mip360 SCENES [OUTPUT]."; fi
DATA=$2
OUTPUT=${3:-outputs/sparse_views}
PRIOR=${PRIOR:-fixer}
check_scenes "$DATA"
case $1 in
  co3d)
    # SparseFusion: 3,000 iterations at 256 pixels, the first 1,000 before the network's own views
    SIZE=256 FULL="--iterations 1000 --further 2000" RULES=co3d:2 MODEL=
    is_scene() { [ -d "$1/images" ]; } # the lists lie beside the sequences
    if [ ! -f "$DATA/frame_annotations.jgz" ]; then
      refuse "$DATA holds no frame_annotations.jgz; name the folder of one category, as apple."
    fi
    ;;
  mip360)
    # ReconX: 1,000 iterations at 512 pixels on photos and proposed views, here after as many on photos
    SIZE=512 FULL="--iterations 1000 --further 1000" RULES=
    # which says what photos saw the seed points
    MODEL="COLMAP model in sparse/ or colmap/sparse/"
    is_scene() { [ -d "$1/sparse" ] || [ -d "$1/colmap/sparse" ]; }
    for views in ${VIEWS:-3 6 9}; do RULES="$RULES sparse:$views"; done
    ;;
  *) refuse "$1 is neither co3d nor mip360." ;;
esac
if [ -z "${SMOKE:-}" ]; then
  PLACE="$PLACE --size $SIZE"
  LENGTH=$FULL
fi
OWN="--prior $PRIOR"
if [ "$PRIOR" = fixer ]; then OWN="$OWN --fixer $FIXER"; fi

set --
for scene in "$DATA"/*/; do
  if is_scene "$scene"; then set -- "$@" "${scene%/}"; fi
done
if [ $# = 0 ]; then refuse "no folder in $DATA has ${MODEL:+a }${MODEL:-images/}."; fi
if [ -n "$MODEL" ]; then
  for scene in "$DATA"/*/; do # before hours of training
    if ! is_scene "$scene"; then leave_out "$scene" "it has no $MODEL."; fi
  done
fi
for rule in $RULES; do
  protocol=$rule
  if [ "$rule" = co3d:2 ]; then protocol=co3d-2view; fi
  for seed in $SEEDS; do
    # shellcheck disable=SC2046,SC2086
    over_scenes difix distill "$@" $(methods) --split "$rule" --seed "$seed" $PLACE $OWN $LENGTH --compare \
      --output "$OUTPUT/$protocol/seed-$seed"
  done
  evaluate_published "$protocol" "$OUTPUT/$protocol" "$OUTPUT/$protocol"
done
exit "$SOME_FAILED"
