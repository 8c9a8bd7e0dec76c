#!/usr/bin/env bash
#SBATCH --job-name=gof
#SBATCH --ntasks-per-node=1
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
# Train in a Slurm job on any number of nodes. The job requeues itself at its time limit. Submit it from the checkout:
#   sbatch [--nodes=4 --gpus-per-node=8 --time=12:00:00 ...] auto_bash/slurm.sh CURRICULUM DATASET OUTPUT [arguments of train.py]
# Slurm sends SIGUSR1 120 seconds before the limit: the run writes a checkpoint, is requeued, and resumes from it.
# The checkout, DATASET and OUTPUT must have the same path on all nodes. One process per GPU, or PROCESSES=N per node.
set -uo pipefail
if [ $# -lt 3 ]; then
  echo "usage: sbatch [options] auto_bash/slurm.sh CURRICULUM DATASET OUTPUT [arguments of train.py]" >&2
  exit 2
fi
if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "slurm.sh: error: not in a Slurm job; run sbatch auto_bash/slurm.sh ... (without Slurm: auto_bash/ssh.sh)" >&2
  exit 2
fi
cd "$SLURM_SUBMIT_DIR" || exit 2 # Slurm runs a copy of this script
if [ ! -f auto_bash/_node.sh ]; then
  echo "slurm.sh: error: $SLURM_SUBMIT_DIR is not the checkout; submit the job from there" >&2
  exit 2
fi
CURRICULUM="$1" DATASET="$2" OUTPUT="$3"
shift 3
NODES="${SLURM_JOB_NUM_NODES:-1}"
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
export NODES MASTER_ADDR MASTER_PORT
srun --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=300 bash auto_bash/_node.sh \
  --curriculum "$CURRICULUM" --dataset_path "$DATASET" --output_dir "$OUTPUT" "$@"
STATUS=$?
if [ "$STATUS" = 138 ]; then # 128 + SIGUSR1
  echo "slurm.sh: time limit reached; requeueing job $SLURM_JOB_ID, which will resume from its last checkpoint"
  scontrol requeue "$SLURM_JOB_ID" || exit "$STATUS"
fi
exit "$STATUS"
