#!/bin/sh
# Nerfbusters' captures, as in Difix3D+: train on the first path, test on the second.
#
#   sh recipes/nerfbusters/run.sh DATA [OUTPUT]      DATA holds a folder for each capture, as they are published
#
# METHODS, SEEDS, FIXER, METRICS, CLUSTER, MAX_FAILED and others: recipes/published.sh.
set -eu
. "$(dirname "$0")/../published.sh"
if [ $# -lt 1 ]; then refuse "write $0 DATA [OUTPUT]; DATA holds a folder for each capture."; fi
DATA=$1
OUTPUT=${2:-outputs/nerfbusters}
check_scenes "$DATA"

# the ways in which captures' photos tell their two paths apart, and the folder of each way's runs
PATHS="names:train=_train_,test=_eval_ names:train=frame_0_,test=frame_1_ names:train=frame_1_,test=frame_2_"

# paths CAPTURE: its way
paths() {
  for way in $PATHS; do
    train=${way#*train=} test=${way#*test=}
    if ls "$1"/images* | grep -q -e "${train%,*}" && ls "$1"/images* | grep -q -e "$test"; then
      echo "$way"
      return
    fi
  done
}

folder_of() {
  case $1 in
    *_eval_) echo train-eval ;;
    *frame_1_) echo 0-1 ;;
    *) echo 1-2 ;;
  esac
}

NAMES="images/ with frame_train_* and frame_eval_*, or frame_1_* and frame_2_*"
any=
for scene in "$DATA"/*/; do any=$any$(paths "$scene" 2>/dev/null); done
if [ -z "$any" ]; then refuse "$DATA has no capture with photos of two paths: $NAMES."; fi
for scene in "$DATA"/*/; do # before hours of training
  if [ -z "$(paths "$scene" 2>/dev/null)" ]; then leave_out "$scene" "it has no photos of two paths: $NAMES."; fi
done
folders=
for split in $PATHS; do # captures whose paths are told apart alike are one line
  set --
  for scene in "$DATA"/*/; do
    if [ "$(paths "$scene" 2>/dev/null)" = "$split" ]; then set -- "$@" "$scene"; fi
  done
  if [ $# -gt 0 ]; then
    folder=$(folder_of "$split")
    folders="$folders $OUTPUT/$folder"
    distill_published "$split" "$OUTPUT/$folder" "$@"
  fi
done
set --
for scene in "$DATA"/*/; do
  if [ -n "$(paths "$scene" 2>/dev/null)" ]; then set -- "$@" "$scene"; fi
done
geometry_published "$OUTPUT/geometry" "$@"
# shellcheck disable=SC2086
evaluate_published nerfbusters "$OUTPUT" $folders
exit "$SOME_FAILED"
