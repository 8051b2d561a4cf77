#!/usr/bin/env bash
# Teaches SmolLM2-135M-Instruct to reason (a LoRA adapter) and measures it: about 65 minutes on
# 2 cores. Killed, it goes on where it was when started again. The package's copy of the adapter
# is rlbudget/models/smollm2_adapter.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
source runs/models/smol_setup.sh
out=out/smol
python -m runs.models.smol.train --out "$out"
mkdir -p rlbudget/models/smollm2_adapter
cp "$out"/adapter/adapter_config.json "$out"/adapter/adapter_model.safetensors \
  rlbudget/models/smollm2_adapter/
cp "$out"/smol_reasoner.log runs/results/smol_reasoner.log
python -m runs.models.smol.measure
