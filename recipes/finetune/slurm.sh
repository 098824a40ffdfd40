#!/bin/sh
#SBATCH --job-name=difix-finetune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --output=difix-finetune-%j.log
#SBATCH --open-mode=append
# PAIRS: folders of pairs, or with STREAM=--stream folders of tars; OUTPUT: a folder all nodes see.
# BASE: SD-Turbo by default; DRY_RUN=1 prints the command instead of running it. A job that was stopped or put back into
# the queue, or whose time is over, goes on from its last checkpoint.
set -eu
: "${PAIRS:?}" "${OUTPUT:?}"
nodes=${SLURM_NNODES:-1}
gpus=${SLURM_GPUS_ON_NODE:-1}
head=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-localhost}" 2>/dev/null | head -n 1) || true
export OMP_NUM_THREADS=4
# this script runs on the first node
PORT=${PORT:-$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}

# $SLURM_NODEID is each node's own, so the shell on the node expands it
launch="accelerate launch --multi_gpu --num_machines $nodes --num_processes $((nodes * gpus)) \
--machine_rank \$SLURM_NODEID --main_process_ip ${head:-localhost} --main_process_port $PORT \
--rdzv_backend static --mixed_precision no --dynamo_backend no"
train="-m difixcli finetune $PAIRS ${STREAM:-} --base ${BASE:-stabilityai/sd-turbo} --device cuda --output $OUTPUT"
# since SLURM 22.05 srun no longer takes the job's --cpus-per-task
cpus=--cpus-per-task=${SLURM_CPUS_PER_TASK:-32}
if [ -n "${DRY_RUN:-}" ]; then
  echo "srun $cpus sh -c '$launch $train'"
  exit
fi
srun "$cpus" sh -c "exec $launch $train" &
step=$!
again=
# to the steps, not to srun, which would kill them
trap 'again=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1 TERM INT
code=0
wait $step || code=$?
while kill -0 $step 2>/dev/null; do # a signal ends the first wait
  code=0
  wait $step || code=$?
done
# one that SLURM itself ends (cancelled, or put back) is no longer running
if [ -n "$again" ] && [ "$code" != 0 ] && [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
