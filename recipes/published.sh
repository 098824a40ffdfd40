# What the recipes of Difix3D+'s three data sets share; read by nerfbusters/run.sh, dl3dv/run.sh and rds/run.sh.
#
# DRY_RUN=1 prints the commands instead of running them. SMOKE=1 runs all of them at toy size on a CPU (minutes a scene):
# it shows that the data lie as the recipe wants them, and its figures mean nothing.
#   METHODS  nerfacto splatfacto       SEEDS    0
#   BASE     what a fixer is trained from: SD-Turbo, as in the paper
#   FIXER    the fixer where none is trained: the published weights (NVIDIA's licence: not for commerce)
#   METRICS  figures of the last table, as psnr,ssim,lpips,fid; by default those whose weights are here
# Run a recipe again and it goes on where it stopped.
METHODS=${METHODS:-nerfacto splatfacto}
SEEDS=${SEEDS:-0}
if [ -n "${SMOKE:-}" ]; then
  PLACE="--preset cpu --device cpu --size 96"
  PAIRS="$PLACE --iterations 60"
  LENGTH="--iterations 40 --further 20 --rounds 2"
  TRAINING="--base ${BASE:-tiny} --iterations 4 --batch 1 --crop 32 --device cpu"
  FIXER=${FIXER:-bundled}
else
  PLACE="--preset gpu --device cuda"
  PAIRS=$PLACE
  LENGTH="--iterations 30000"
  # L2 + LPIPS + 0.5 Gram from step 2,000, crops of 512, bf16, clip 1.0: the defaults of this base
  TRAINING="--base ${BASE:-stabilityai/sd-turbo} --iterations 10000 --learning-rate 2e-5 --batch 1 --device cuda"
  FIXER=${FIXER:-nvidia/difix_ref}
fi

run() { if [ -n "${DRY_RUN:-}" ]; then echo "$*"; else "$@"; fi; }

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

# distill_published SCENE SPLIT OUTPUT: 30k iterations on photos, from there as many in rounds, trained as the release
# trains with its weights (--profile published). Beside it as many iterations on photos alone.
distill_published() {
  for method in $METHODS; do
    for seed in $SEEDS; do
      # shellcheck disable=SC2086
      run difix distill "$1" --method "$method" --split "$2" --seed "$seed" $PLACE --fixer "$FIXER" $LENGTH \
        --profile published --no-guard --compare --output "$3/$(basename "$1")/$method/seed-$seed"
    done
  done
}

# evaluate_published FOLDER PROTOCOL OUTPUT: for each method and seed a table of all scenes in FOLDER, their mean last
evaluate_published() {
  scenes=$1 protocol=$2 output=$3
  for method in $METHODS; do
    for seed in $SEEDS; do
      set --
      for scene in "$scenes"/*/; do
        set -- "$@" "$output/$(basename "$scene")/$method/seed-$seed"
      done
      # shellcheck disable=SC2086
      run difix eval "$@" --protocol "$protocol" ${METRICS:+--metrics $METRICS} --output "$output/$method-seed-$seed"
    done
  done
}
