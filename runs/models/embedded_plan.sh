#!/usr/bin/env bash
# The plan of an ensemble and a correction over the embedded model, runs/models/embedded: two
# policies of other seeds, and which of their exits to take back. A few minutes on two cores.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
out=out/embedded_plan kept=runs/models/embedded
rm -rf "$out"
python -m rlbudget record --model embedded --task embedded --n 900 --store-text --out "$out/traces"
for seed in 0 1; do
  python -m rlbudget train "$out/traces" --out "$out/run_$seed" --seed "$seed"
  rm -rf "$kept/policy_$seed"
  python -m rlbudget freeze "$out/run_$seed" --out "$kept/policy_$seed"
done
python -m rlbudget correct "$kept/policy_0" "$out/traces" --out "$kept/correction.safetensors" \
  --aim answers --most-extra 1 --token-price 0.003
# What pays is to take back a few in a hundred; the suite is there to see many of them.
python - "$kept/correction.safetensors" <<'EOF'
import sys
from dataclasses import replace
from rlbudget.strategies.correction.correct import load_correction, save_correction

fitted = load_correction(sys.argv[1])
save_correction(sys.argv[1], replace(fitted, threshold=0.1, budget=16, rounds=2))
EOF
