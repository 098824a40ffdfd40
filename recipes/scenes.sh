# What recipes over scenes share: read by published.sh, and by the run.sh and bundled.sh that train the package's models.
#
# DRY_RUN=1 prints the commands instead of running them.
#   CLUSTER     where scenes are worked on, as "--cluster slurm --partition gpu --gpus 1 --time 4:00:00"; here by default
#   MAX_FAILED  how many scenes of one line may fail (1000, which is any number)
# Scenes that fail are told of and left out, and the recipe ends with exit code 3; run again, it goes on where it stopped
# and tries them again. Once more than MAX_FAILED scenes of a line have failed, nothing more begins, and it ends there
# with exit code 2. Each scene has a folder of its own, be there one or many, so that others may be added later.
# A training is not begun again by itself where scenes have come that were missing from it: it is expensive, and all that
# was made with it would have to be made again. The recipe ends there, and says what to remove.
MAX_FAILED=${MAX_FAILED:-1000}
SOME_FAILED=0

run() { if [ -n "${DRY_RUN:-}" ]; then echo "$*"; else "$@"; fi; }

# several COMMAND…: like run, but that some of the scenes failed is no reason to stop
several() {
  ended=0
  run "$@" || ended=$?
  if [ "$ended" = 3 ]; then SOME_FAILED=3; elif [ "$ended" != 0 ]; then exit "$ended"; fi
}

# over_scenes COMMAND…: several, on the cluster if one was named
over_scenes() {
  # shellcheck disable=SC2086
  several "$@" --max-failed "$MAX_FAILED" ${CLUSTER:+$CLUSTER --wait}
}

# leave_out SCENE WHY: told of as one that has failed
LEFT_OUT=0
leave_out() {
  echo "$1: failed: $2" >&2
  SOME_FAILED=3
  LEFT_OUT=$((LEFT_OUT + 1))
  if [ "$LEFT_OUT" -gt "$MAX_FAILED" ]; then refuse "more than $MAX_FAILED scenes failed (MAX_FAILED)."; fi
}

# trained FOLDER MADE COMMAND…: several, for a training into FOLDER, with which MADE was made
trained() {
  folder=$1 made=$2
  shift 2
  ended=0
  run "$@" --output "$folder" || ended=$?
  if [ "$ended" = 3 ]; then
    SOME_FAILED=3
  elif [ "$ended" != 0 ]; then
    if [ -f "$folder/run.json" ]; then
      echo "To train again, with scenes that were missing before, say, remove $folder${made:+ and $made}." >&2
    fi
    exit "$ended"
  fi
}

# readable SCENE…: sets READABLE to those of them that can be read, for what takes all or none
readable() {
  READABLE="$*"
  if [ -n "${DRY_RUN:-}" ]; then return; fi
  ended=0
  READABLE=$(python "$(dirname "$0")/../readable.py" --max-failed "$MAX_FAILED" "$@") || ended=$?
  if [ "$ended" = 3 ]; then SOME_FAILED=3; elif [ "$ended" != 0 ]; then exit "$ended"; fi
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
