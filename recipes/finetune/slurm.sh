#!/bin/sh
#SBATCH --job-name=difix-finetune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=INT@60
# PAIRS: folders of pairs, or with STREAM=--stream folders of tars; OUTPUT: a folder all nodes see.
# BASE: SD-Turbo by default; DRY_RUN=1 prints the command instead of running it. A job that was stopped or put back into
# the queue goes on from its last checkpoint.
set -eu
: "${PAIRS:?}" "${OUTPUT:?}"
nodes=${SLURM_NNODES:-1}
gpus=${SLURM_GPUS_ON_NODE:-1}
head=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-localhost}" 2>/dev/null | head -n 1) || true
export OMP_NUM_THREADS=4

# $SLURM_NODEID is each node's own, so the shell on the node expands it
launch="accelerate launch --multi_gpu --num_machines $nodes --num_processes $((nodes * gpus)) \
--machine_rank \$SLURM_NODEID --main_process_ip ${head:-localhost} --main_process_port ${PORT:-29500} \
--rdzv_backend static --mixed_precision no --dynamo_backend no"
train="-m difixcli finetune $PAIRS ${STREAM:-} --base ${BASE:-stabilityai/sd-turbo} --device cuda --output $OUTPUT"
if [ -n "${DRY_RUN:-}" ]; then echo "srun sh -c '$launch $train'"; else srun sh -c "$launch $train"; fi
