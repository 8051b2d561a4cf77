#!/usr/bin/env bash
# Records the SmolLM2 reasoner on questions it was not trained on, then trains the free policy on
# the traces and holds it to every rival. The kept traces are runs/models/smollm2/traces; with
# --record they are recorded anew (about half an hour on 2 cores).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
if [ "${1:-}" = "--record" ]; then
  source runs/models/smol_setup.sh
  rm -rf runs/models/smollm2/traces
  rlbudget record --model smollm2 --task smollm2 --n 2600 --seed 0 \
    --out runs/models/smollm2/traces
fi
python -m runs.quality.smol_policy
