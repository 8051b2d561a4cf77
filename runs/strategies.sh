#!/usr/bin/env bash
# Measures every strategy on recorded traces: the impact model, floors and budgets, and each
# strategy with it and without it (docs/strategies.md). Records the embedded model once.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
traces=runs/strategies-run/traces
[ -d "$traces" ] || rlbudget record --model embedded --task embedded --n 3600 --out "$traces.part"
[ -d "$traces" ] || mv "$traces.part" "$traces"
python runs/impact_model.py --traces "$traces"
python runs/em_floor.py --traces "$traces"
python runs/strategies.py --traces "$traces"
