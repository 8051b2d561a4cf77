#!/usr/bin/env bash
# Record a task as a Slurm array job, one shard a task of the array, on a shared file system.
#
#   job=$(sbatch --parsable runs/cluster/slurm.sh OUT --model MODEL --task TASK)
#   sbatch --dependency=afterok:"$job" --wrap "rlbudget traces merge OUT --out TRACES"
#
# A task that is preempted or whose node dies is queued again and goes on with its shard; tasks that
# failed are run again with the same line and --array=3,17. SHARDS stays what it was: it says into
# how many parts the questions are cut, however many of them are run.
#SBATCH --job-name=rlbudget-record
#SBATCH --array=1-64
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=rlbudget-%A-%a.log
set -euo pipefail

SHARDS=64
if [ "$#" -lt 5 ]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
out=$1
shift
exec rlbudget record "$@" --out "$out" --shard "${SLURM_ARRAY_TASK_ID:?run it with sbatch}/$SHARDS"
