# What the recipes of Difix3D+'s three data sets share; read by nerfbusters/run.sh, dl3dv/run.sh and rds/run.sh, and in
# part by reconx/run.sh, sparse_views/run.sh and super_resolution/run.sh.
#
# DRY_RUN=1 prints the commands instead of running them. SMOKE=1 runs all of them at toy size on a CPU (minutes a scene):
# it shows that the data lie as the recipe wants them, and its figures mean nothing.
#   METHODS  nerfacto splatfacto       SEEDS    0
#   BASE     what a fixer is trained from: SD-Turbo, as in the paper
#   FIXER    the fixer where none is trained: the published weights (NVIDIA's licence: not for commerce)
#   METRICS  figures of the last table, as psnr,ssim,lpips,fid; by default those whose weights are here
#   CLUSTER  where scenes are worked on, as "--cluster slurm --partition gpu --gpus 1 --time 4:00:00"; here by default
# Run a recipe again and it goes on where it stopped. Scenes that fail are told of and left out, and it ends with exit
# code 3; run again, it tries them again.
METHODS=${METHODS:-nerfacto splatfacto}
SEEDS=${SEEDS:-0}
if [ -n "${SMOKE:-}" ]; then
  PLACE="--preset cpu --device cpu --size 96"
  PAIRS="$PLACE --iterations 60"
  PHOTOS="--iterations 40"
  LENGTH="$PHOTOS --further 20 --rounds 2"
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

run() { if [ -n "${DRY_RUN:-}" ]; then echo "$*"; else "$@"; fi; }

SOME_FAILED=0
# several COMMAND…: like run, but that some of the scenes failed is no reason to stop
several() {
  ended=0
  run "$@" || ended=$?
  if [ "$ended" = 3 ]; then SOME_FAILED=3; elif [ "$ended" != 0 ]; then exit "$ended"; fi
}

# over_scenes COMMAND…: several, on the cluster if one was named
over_scenes() {
  # shellcheck disable=SC2086
  several "$@" ${CLUSTER:+$CLUSTER --wait}
}

# methods: METHODS as options of difix distill
methods() {
  for method in $METHODS; do echo "--method $method"; done
}

refuse() {
  echo "Error: $*" >&2
  exit 2
}

# check_scenes FOLDER: it holds a folder for each scene
check_scenes() {
  for scene in "$1"/*/; do
    if [ -d "$scene" ]; then return; fi
  done
  refuse "$1 holds no folders; name the folder that holds one for each scene."
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
