#!/bin/bash
# A cluster for one job, inside a Slurm allocation: up when the allocation starts, down when the command ends.
#
#   once, on a login node, in the clone:  bash clusters/node.sh packages .
#   up:    sbatch clusters/slurm.sh raynn train jobs/digits_cnn.yaml storage="$PWD/runs"
#   down:  it ends with the command; or scancel JOBID
#
# Cost: the allocation, all of its nodes for as long as the command runs. Submit it from the clone, which lies, as do
# the data and the run folder, in a file system that all nodes share (home, scratch); ~/raynn-env too.
# Other sizes go on the command line: sbatch --nodes=4 --gpus-per-node=1 --partition=NAME clusters/slurm.sh ...
# Whole nodes (--exclusive): when it ends, Ray ends all Ray of yours on a node, another job's too.
# Secrets come from the environment that sbatch is called in: WANDB_API_KEY reaches the job, and no file.
#SBATCH --job-name=raynn
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=02:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail

[ $# -gt 0 ] || {
    echo 'usage: sbatch clusters/slurm.sh COMMAND..., for instance raynn train jobs/digits_cnn.yaml' >&2
    exit 2
}
export PATH="$HOME/raynn-env/bin:$PATH" RAY_USAGE_STATS_ENABLED=0

# Other people's jobs reach these nodes by network: whoever knows the token runs code as you. It lives as long as the
# allocation.
umask 077
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
# A node whose link is cut is given up after 12 s instead of 65 (docs/faults.md).
export RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=2000 RAY_health_check_failure_threshold=4

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# 20000 to 29999: free of the ports that Ray gives its workers, and another one for each job.
port=$((20000 + SLURM_JOB_ID % 10000))
export RAY_ADDRESS="$head:$port"
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # a cold file system takes its time to import Ray everywhere

options=(--num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats --temp-dir="/tmp/ray-$SLURM_JOB_ID")
[ -z "${SLURM_GPUS_ON_NODE-}" ] || options+=(--num-gpus="$SLURM_GPUS_ON_NODE")
# The dashboard stays on the head's own 127.0.0.1; the command talks to the cluster through RAY_ADDRESS.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    --cpus-per-task="$SLURM_CPUS_PER_TASK" ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES" \
    "${options[@]}" -- "$@"
