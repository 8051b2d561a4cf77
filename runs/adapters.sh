#!/usr/bin/env bash
# Everything about the adapters, on the SmolLM2 reasoner and the policy kept in runs/smollm2: what
# they cost, what a policy saves by the clock, and the conformance suite in the real engines. About
# an hour on two cores, half of it for building llama-server, llama-cpp-python and vLLM's own venv
# (3.5 GB).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source runs/smol_setup.sh
python runs/adapter_overhead.py --model smollm2 --task smollm2 --policy runs/smollm2/policy \
  --name adapter_overhead
python runs/conformance.py --record
bash runs/vllm.sh
folder=$(python -c 'from rlbudget.models.smollm2 import *; print(smollm2_folder())')
bash runs/vllm.sh --model "$folder" --name vllm_check
bash runs/vllm.sh --model "$folder" --overhead --name vllm_overhead
runs/llama_server.sh
python runs/llama_check.py
bash runs/llama_cpp.sh
python runs/adapters.py
