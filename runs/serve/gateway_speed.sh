#!/usr/bin/env bash
# The gateway against LiteLLM's proxy and nginx, on this machine:
# bash runs/serve/gateway_speed.sh latency throughput soak --keep; --help lists all arguments.
# Installs Debian's nginx where there is none (as root), and LiteLLM's proxy into a venv of its own,
# .venv-litellm (1 GB).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if ! command -v nginx >/dev/null; then
  apt-get update -qq
  apt-get install -y -qq nginx-light >/dev/null
fi
venv=.venv-litellm wanted='litellm[proxy]==1.108.7'
if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$wanted" ]; then
  echo "Setting up $venv (once) ..." >&2
  [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/python" -m pip --quiet --disable-pip-version-check install "$wanted"
  echo "$wanted" >"$venv/.installed"
fi
python=$PWD/.venv/bin/python
[ -x "$python" ] || python=${PYTHON:-python3}
exec "$python" -m runs.serve.gateway_speed "$@"
