#!/bin/bash
#SBATCH --job-name=speaker-search --array=1-8 --requeue --open-mode=append
#SBATCH --gres=gpu:1 --cpus-per-task=4 --time=04:00:00 --signal=TERM@60
# Eight workers of one study. Set these, from this folder: sbatch cluster/slurm.sh
export OPTUNA_STORAGE=${OPTUNA_STORAGE:-postgresql+psycopg://USER@HOST/NAME}
export MLFLOW_TRACKING_URI=${MLFLOW_TRACKING_URI:-http://HOST:5000}
srun python search.py --data "${CORPUS:-/shared/Dataset}" --study homework --trials "${TRIALS:-500}"
# 128 + SIGTERM: preempted, or out of time. The trial's checkpoint is saved; another job goes on.
[ $? -ne 143 ] || scontrol requeue "$SLURM_JOB_ID"
