#!/bin/bash
# What a CUDA machine has to show: recording, the Hugging Face integrations, the overhead a token at
# batch 1, 16 and 64, and the torch code of the vLLM V2 class on CUDA tensors. Needs torch,
# transformers, numpy, pyarrow and what `pip install "rlbudget[models]"` brings; where there is no
# network, wheels lie in WHEELS (a folder) and are installed from there. From the checkout's root:
#   runs/integrations/gpu_check.sh [--device cuda|cpu] [--dtype float32|bfloat16] [--tokens N]
# On --device cpu the same runs to prove that it works. The last line is one JSON object, kept as
# runs/results/gpu_check.json only where a CUDA device was used.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ -n "${WHEELS:-}" ]; then
    python -m pip install --quiet --no-index --find-links "$WHEELS" pyarrow msgspec orjson tyro rich
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m runs.integrations.gpu_check "$@"
