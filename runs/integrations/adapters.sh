#!/usr/bin/env bash
# Everything about the adapters, on the SmolLM2 reasoner and the policy kept in
# runs/models/smollm2: what they cost, what a policy saves by the clock, and the conformance suite
# in the real engines. About an hour on two cores, half of it for building llama-server,
# llama-cpp-python and vLLM's own venv (3.5 GB).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
source runs/models/smol_setup.sh
python -m runs.integrations.adapter_overhead --model smollm2 --task smollm2 \
  --policy runs/models/smollm2/policy --name adapter_overhead
python -m runs.integrations.conformance --record
bash runs/integrations/vllm.sh
folder=$(python -c 'from rlbudget.models.smollm2 import *; print(smollm2_folder())')
bash runs/integrations/vllm.sh --model "$folder" --name vllm_check
bash runs/integrations/vllm.sh --model "$folder" --overhead --name vllm_overhead
runs/integrations/llama_server.sh
python -m runs.integrations.llama_check
bash runs/integrations/llama_cpp.sh
python -m runs.integrations.adapters
