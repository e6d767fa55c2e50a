#!/usr/bin/env bash
# One training run over all GPUs of a Slurm allocation, a task for each; before its time is over it saves and queues anew.
#
# Command: sbatch --nodes 4 infra/cluster/slurm/train.sh RECIPE [--set a.b=c …]
# Cost:    the nodes until the recipe's steps are done, however often it was queued
# Needs:   the checkout with its .venv (make setup) on a disk that all nodes see, or a copy at the same path on each;
#          the dataset and the recipe's out on that disk or on an object store; a queue that lets jobs be requeued
# Source:  `man sbatch`, --signal and --requeue; training/rendezvous.py finds the ranks' place in SLURM_ variables
#SBATCH --job-name=pairmill-train
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem-per-cpu=4G
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?submit this from the root of the checkout}"
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"

# The rank that saves ends last: the others' exit must not kill it. But none waits for ever for one that has died.
code=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 --wait=600 \
  python -m training train "$@" || code=$?

if [ "$code" = 75 ]; then  # it was asked to leave, has saved, and goes on from there
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
