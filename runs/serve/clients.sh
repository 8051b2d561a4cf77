#!/usr/bin/env bash
# openai-python and LiteLLM against the gateway and against the server behind it:
# bash runs/serve/clients.sh llama-server|vLLM
# Makes .venv-openai and .venv-litellm. Needs what runs/integrations/llama_server.sh, or
# runs/integrations/vllm.sh, makes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
make_venv() { # folder, requirement
  if [ "$(cat "$1/.installed" 2>/dev/null)" != "$2" ]; then
    echo "Setting up $1 (once) ..." >&2
    [ -x "$1/bin/python" ] || "${PYTHON:-python3}" -m venv "$1"
    "$1/bin/python" -m pip --quiet --disable-pip-version-check install "$2"
    echo "$2" >"$1/.installed"
  fi
}
make_venv .venv-openai 'openai==3.51.0'
make_venv .venv-litellm 'litellm[proxy]==1.108.7'
python=$PWD/.venv/bin/python
[ -x "$python" ] || python=${PYTHON:-python3}
exec "$python" -m runs.serve.clients "$@"
