#!/bin/sh
# ReconX (Liu et al., 2024): few photos far apart, films of the ways between them by a video model.
#
#   sh recipes/reconx/run.sh re10k CLIPS [OUTPUT]       CLIPS holds a folder for each clip of RealEstate10K: its text and
#                                                       images/ with its frames; two frames train
#   sh recipes/reconx/run.sh dl3dv SCENES [OUTPUT]      SCENES holds a folder for each scene of DL3DV, posed
#   sh recipes/reconx/run.sh ablation SCENES [OUTPUT]   what structure, confidence and the perceptual term are worth
#
#   VIDEO   the video model (bundled)      VIEWS   how many photos train of dl3dv and the ablation (2 3 6 9; 2)
#   ANGLE   large: the hard set of re10k, whose two frames are 200 apart; small, by default
#   METHODS (splatfacto), SEEDS, METRICS, CLUSTER, MAX_FAILED, DRY_RUN and SMOKE are as in recipes/published.sh, and so
#   is what happens to scenes that fail. Run it again and it goes on where it stopped.
set -eu
METHODS=${METHODS:-splatfacto}
. "$(dirname "$0")/../published.sh"
if [ $# -lt 2 ]; then refuse "write $0 re10k CLIPS [OUTPUT], $0 dl3dv SCENES [OUTPUT] or $0 ablation SCENES [OUTPUT]."; fi
DATA=$2
OUTPUT=${3:-outputs/reconx}
VIDEO=${VIDEO:-bundled}
check_scenes "$DATA"
# 32 frames from photo to photo, 1,000 iterations on them without densification (here after 100 on the photos, whose
# renders are filmed)
OWN="--prior video --video $VIDEO"
if [ -n "${SMOKE:-}" ]; then
  LENGTH="--iterations 8 --further 12 --frames 4 --set max_gaussians=300"
else
  PLACE="$PLACE --size 512"
  LENGTH="--iterations 100 --further 1000 --frames 32 --share 0.5 --set pipeline.model.stop_split_at=0"
fi

# distil PROTOCOL SPLIT NAME [OPTIONS]: a run of each scene and method, then a table of all
distil() {
  protocol=$1 rule=$2 name=$3
  shift 3
  for seed in $SEEDS; do
    # shellcheck disable=SC2046,SC2086
    over_scenes difix distill "$DATA"/*/ $(methods) --split "$rule" --seed "$seed" $PLACE $OWN $LENGTH "$@" \
      --output "$OUTPUT/$name/seed-$seed"
    # shellcheck disable=SC2086
    several difix eval "$OUTPUT/$name/seed-$seed" --protocol "$protocol" ${METRICS:+--metrics $METRICS} \
      --output "$OUTPUT/$name/table-seed-$seed"
  done
}

case $1 in
  re10k)
    case ${ANGLE:-small} in
      small) distil re10k-2view between:2:45 re10k-small --compare ;;
      large) distil re10k-2view:large between:2:201 re10k-large --compare ;;
      *) refuse "ANGLE is $ANGLE, neither small nor large." ;;
    esac
    ;;
  dl3dv)
    for views in ${VIEWS:-2 3 6 9}; do distil "dl3dv-$views" "between:$views" "dl3dv-$views" --compare; done
    ;;
  ablation)
    views=${VIEWS:-2} pixels="--loss method=1" perceptual="--loss method=1 --loss perceptual=0.5"
    # shellcheck disable=SC2086
    distil "dl3dv-$views" "between:$views" without-structure --points none --trust all $pixels
    # shellcheck disable=SC2086
    distil "dl3dv-$views" "between:$views" with-structure --points auto --trust all $pixels
    # shellcheck disable=SC2086
    distil "dl3dv-$views" "between:$views" with-confidence --points auto $pixels
    # shellcheck disable=SC2086
    distil "dl3dv-$views" "between:$views" with-perceptual --points auto --compare $perceptual
    ;;
  *) refuse "$1 is neither re10k, dl3dv nor ablation." ;;
esac
exit "$SOME_FAILED"
