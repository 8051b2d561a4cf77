#!/usr/bin/env bash
# Measures every strategy on recorded traces and puts the rows into docs/strategies.md: the impact
# model, floors and budgets, two models together, the feedback loop, and each strategy with it and
# without it. Records the embedded model once, on its own questions and on those of SmolLM2.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
run=out/strategies
traces=$run/traces many=$run/many
record() {
  local to=${!#}
  [ -d "$to" ] || rlbudget record --model embedded "${@:1:$#-1}" --out "$to.part"
  [ -d "$to" ] || mv "$to.part" "$to"
}
mkdir -p "$run"
record --task embedded --n 3600 --store-text "$traces"
record --task embedded --n 7200 --seed 1 "$many"
python -m runs.strategies.impact_model --traces "$traces"
python -m runs.strategies.em_floor --traces "$many"
python -m runs.strategies.second_model
python -m runs.strategies.feedback_loop --traces "$traces"
python -m runs.strategies.strategies --traces "$traces"
python -m runs.readme
