#!/bin/sh
# The release's recipe on one GPU. PAIRS: what difix curate made (space-separated); OUTPUT: where the fixer goes.
# BASE: SD-Turbo by default; DRY_RUN=1 prints the command instead of running it.
set -eu
: "${PAIRS:?}" "${OUTPUT:?}"

# 10,000 steps at 2e-5, batch 1, whole frames, L2 + LPIPS + Gram from step 2,000, bf16, clip 1.0: this base's defaults
set -- difix finetune $PAIRS --base "${BASE:-stabilityai/sd-turbo}" --device cuda --output "$OUTPUT"
if [ -n "${DRY_RUN:-}" ]; then echo "$@"; else exec "$@"; fi
