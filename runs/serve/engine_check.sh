#!/usr/bin/env bash
# The gateway before a real vLLM on this machine's CPU: the questions of the conformance suite in
# both ways of cutting, in the engine and here.
#   bash runs/serve/engine_check.sh [--questions 100] [--kept]
# Needs .venv-vllm, which runs/integrations/vllm.sh makes; set VLLM_PYTHON to another interpreter.
# About 20 minutes on two idle cores.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
exec python -m runs.serve.engine_check "$@"
