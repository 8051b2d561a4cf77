#!/usr/bin/env bash
# Everything about the integrations, on the SmolLM2 reasoner and the policies and plans kept in
# runs/models: what they cost, what a policy saves by the clock, and the conformance suite in the
# real engines. About an hour on two cores, half of it for building llama-server,
# llama-cpp-python and vLLM's own venv (3.5 GB).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
source runs/models/smol_setup.sh
for name in "" _top; do
  python -m rlbudget impact "runs/models/smollm2/policy$name" runs/models/smollm2/traces \
    --out "runs/models/smollm2/plan/guard$name.safetensors" --max-risk 0.03
done
rm -f runs/models/smollm2/plan/*.svg
python -m runs.integrations.conformance --record
python -m runs.integrations.corrected_check
runs/integrations/llama_server.sh
python -m runs.integrations.llama_check
bash runs/integrations/llama_cpp.sh
folder=$(python -c 'from rlbudget.models.smollm2 import *; print(smollm2_folder())')
bash runs/integrations/vllm.sh suite "$folder"
bash runs/integrations/vllm.sh
bash runs/integrations/vllm.sh --model "$folder" --name vllm_check
bash runs/integrations/vllm.sh --model "$folder" --overhead --name vllm_overhead
python -m runs.integrations.integration_overhead --model smollm2 --task smollm2 \
  --policy runs/models/smollm2/policy --name integration_overhead
