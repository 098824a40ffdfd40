# What the recipes of Difix3D+'s three data sets share; read by nerfbusters/run.sh, dl3dv/run.sh and rds/run.sh, and in
# part by reconx/run.sh, sparse_views/run.sh and super_resolution/run.sh.
#
# SMOKE=1 runs all commands at toy size on a CPU (minutes a scene): it shows that the data lie as the recipe wants them,
# and its figures mean nothing. DRY_RUN, CLUSTER, MAX_FAILED and what happens to scenes that fail: recipes/scenes.sh.
#   METHODS  nerfacto splatfacto       SEEDS    0
#   BASE     what a fixer is trained from: SD-Turbo, as in the paper
#   FIXER    the fixer where none is trained: the published weights (NVIDIA's licence: not for commerce)
#   METRICS  figures of the last table, as psnr,ssim,lpips,fid; by default those whose weights are here
. "$(dirname "$0")/../scenes.sh"
METHODS=${METHODS:-nerfacto splatfacto}
SEEDS=${SEEDS:-0}
if [ -n "${SMOKE:-}" ]; then
  PLACE="--preset cpu --device cpu --size 96"
  PAIRS="$PLACE --iterations 60"
  PHOTOS="--iterations 16"
  LENGTH="$PHOTOS --further 8 --rounds 2"
  TRAINING="--base ${BASE:-tiny} --iterations 4 --batch 1 --crop 32 --device cpu"
  FIXER=${FIXER:-bundled}
else
  PLACE="--preset gpu --device cuda"
  PAIRS=$PLACE
  PHOTOS="--iterations 30000"
  LENGTH=$PHOTOS
  # whole frames, L2 + LPIPS + Gram from step 2,000, bf16, clip 1.0: the defaults of this base
  TRAINING="--base ${BASE:-stabilityai/sd-turbo} --iterations 10000 --learning-rate 2e-5 --batch 1 --device cuda"
  FIXER=${FIXER:-nvidia/difix_ref}
fi

# methods: METHODS as options of difix distill
methods() {
  for method in $METHODS; do echo "--method $method"; done
}

# distill_published SPLIT OUTPUT SCENE…: 30k iterations on photos, from there as many in rounds, trained as the release
# trains with its weights (--profile published). Beside it as many iterations on photos alone. Runs are
# OUTPUT/seed-SEED/SCENE/METHOD.
distill_published() {
  split=$1 output=$2
  shift 2
  for seed in $SEEDS; do
    # shellcheck disable=SC2046,SC2086
    over_scenes difix distill "$@" $(methods) --split "$split" --seed "$seed" $PLACE --fixer "$FIXER" $LENGTH \
      --profile published --no-guard --compare --output "$output/seed-$seed"
  done
}

# geometry_published OUTPUT SCENE…: a nerfacto of all photos of each scene, whose depth says what is measured of any method
geometry_published() {
  GEOMETRY=$1
  shift
  # shellcheck disable=SC2086
  over_scenes difix distill "$@" --method nerfacto --split all --schedule none --targets spiral:2 $PLACE --fixer bundled \
    $PHOTOS --output "$GEOMETRY"
}

# evaluate_published PROTOCOL OUTPUT FOLDER…: for each seed a table of all scenes and methods in FOLDER/seed-SEED, their
# mean last
evaluate_published() {
  protocol=$1 output=$2
  shift 2
  for seed in $SEEDS; do
    # shellcheck disable=SC2046,SC2086
    several difix eval $(for folder in "$@"; do echo "$folder/seed-$seed"; done) --protocol "$protocol" \
      ${METRICS:+--metrics $METRICS} ${GEOMETRY:+--geometry "$GEOMETRY"} --output "$output/table-seed-$seed"
  done
}
