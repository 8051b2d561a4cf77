#!/usr/bin/env bash
# Record a task in shards, several at once: with GNU parallel on many machines or one, else with
# xargs on this one. What was broken off goes on when the same line is run again; each shard has a
# folder of its own below OUT, which the machines share.
#
#   runs/cluster/parallel.sh SHARDS JOBS OUT --model MODEL|URL --task TASK [other words of record]
#   HOSTS=hosts.txt runs/cluster/parallel.sh 64 1 /shared/traces --model ...   a host a line, for ssh
#   rlbudget traces merge OUT --out TRACES                                     when all have ended
#
# RLBUDGET names the command, by default "rlbudget" (it may hold spaces).
set -euo pipefail

if [ "$#" -lt 4 ]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
shards=$1 jobs=$2 out=$3
shift 3
read -ra rlbudget <<<"${RLBUDGET:-rlbudget}"
command=("${rlbudget[@]}" record "$@" --out "$out")

if command -v parallel >/dev/null; then
  mkdir -p "$out"
  hosts=()
  [ -z "${HOSTS:-}" ] || hosts=(--sshloginfile "$HOSTS" --workdir "$PWD")
  seq "$shards" | parallel --quote --jobs "$jobs" --retries 3 --joblog "$out/parallel.log" \
    "${hosts[@]}" "${command[@]}" --shard "{}/$shards"
else
  seq "$shards" | xargs -P "$jobs" -I '{}' "${command[@]}" --shard "{}/$shards"
fi
