#!/usr/bin/env bash
# infra/cluster/slurm/train.sh on nodes without GPUs: a task for each socket.
#
# Command: sbatch --nodes 4 infra/cluster/slurm/train_cpu.sh RECIPE [--set a.b=c …]
#SBATCH --job-name=pairmill-train
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=16
#SBATCH --mem-per-cpu=2G
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
exec bash "${SLURM_SUBMIT_DIR:?submit this from the root of the checkout}/infra/cluster/slurm/train.sh" "$@"
