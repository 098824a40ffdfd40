# What the recipes of Difix3D+'s three data sets share; read by nerfbusters/run.sh, dl3dv/run.sh and rds/run.sh.
#
# DRY_RUN=1 prints the commands. FIXER names the fixer (by default the published weights, which stand under NVIDIA's
# non-commercial licence), METHODS the methods, SEEDS the seeds. Run a recipe again and it goes on where it stopped.
FIXER=${FIXER:-nvidia/difix_ref}
METHODS=${METHODS:-nerfacto splatfacto}
SEEDS=${SEEDS:-0}
GPU="--preset gpu --device cuda"

run() { if [ -n "${DRY_RUN:-}" ]; then echo "$*"; else "$@"; fi; }

# distill_published SCENE SPLIT OUTPUT: 30k iterations on photos; from there 30k (NeRF) or 60k (splats) in rounds of 1.5k,
# steps of 0.5, fixes wholly trusted, one reference, two fifths of the rays or three tenths of the images on fixes;
# beside it as many iterations on photos alone. Then the figures and a report.
distill_published() {
  for method in $METHODS; do
    if [ "$method" = splatfacto ]; then
      iterations=60000 rounds=40 share=0.3
    else
      iterations=30000 rounds=20 share=0.4
    fi
    for seed in $SEEDS; do
      folder=$3/$(basename "$1")/$method/seed-$seed
      # shellcheck disable=SC2086
      run difix distill "$1" --method "$method" --split "$2" --seed "$seed" $GPU --fixer "$FIXER" \
        --schedule none --iterations 30000 --output "$folder/photos"
      # shellcheck disable=SC2086
      run difix distill "$1" --method "$method" --split "$2" --seed "$seed" $GPU --fixer "$FIXER" \
        --start "$folder/photos" --iterations $iterations --rounds $rounds --step 0.5 --share $share \
        --trust all --references 1 --compare --output "$folder/distilled"
      run difix eval "$folder/distilled"
    done
  done
}
