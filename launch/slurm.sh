#!/usr/bin/env bash
# Train on a Slurm cluster: sbatch launch/slurm.sh openmoji --run-dir /shared/runs/openmoji
#
# One task for each GPU: jax sees Slurm, and gives each task the GPU of its number on the node.
#SBATCH --job-name=ldm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@180 # three minutes before the time is over: all save at the same step, and leave with status 75
#SBATCH --open-mode=append
#SBATCH --output=ldm-%j.log
set -uo pipefail

[[ $# -gt 0 ]] || { echo "say what to train: sbatch launch/slurm.sh NAME --run-dir /shared/RUN" >&2; exit 2; }
RESTARTS="${RESTARTS:-10}"

# --kill-on-bad-exit=0: whoever is left ends by itself, and says why; srun gives the largest status of all tasks.
for ((attempt = 0; attempt <= RESTARTS; attempt++)); do
  srun --kill-on-bad-exit=0 --wait=120 ldm train "$@"
  status=$?
  case "$status" in
    0 | 2 | 3) exit "$status" ;;                      # finished, or it would end so again
    75) scontrol requeue "$SLURM_JOB_ID" && exit 0 ;; # asked to stop, and saved: goes on in the next allocation
  esac
  echo "ended with status $status; attempt $((attempt + 1)) of $RESTARTS follows" >&2
  sleep 10
done
exit "$status"
