#!/usr/bin/env bash
# One recipe on a Ray cluster inside a Slurm allocation: Ray starts on every node, the recipe runs, Ray stops.
#
# Command: sbatch --nodes 8 infra/cluster/slurm.sh RECIPE [--set a.b=c …]
# Cost:    the nodes for the hours that `python -m pipeline run RECIPE --dry-run` reckons; requeued, it goes on
# Needs:   the checkout with its .venv (make setup) on a disk that all nodes see, or a copy at the same path on each;
#          nodes that reach the web; the dataset on that disk or on an object store
# Source:  `ray symmetric-run --help`
#SBATCH --job-name=pairmill
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --mem-per-cpu=2G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?submit this from the root of the checkout}"
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))  # two jobs may share a node
export PATH="$PWD/.venv/bin:$PATH" RAY_USAGE_STATS_ENABLED=0
ulimit -n "$(ulimit -H -n)"

# The cluster is open to whoever reaches its ports: a token of its own, in a home that all nodes see.
export RAY_AUTH_MODE=token
ray get-auth-token --generate > /dev/null

srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" \
  ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_NNODES" --num-cpus "$SLURM_CPUS_PER_TASK" -- \
  python -m pipeline run "$@" --ray "$head:$port"
