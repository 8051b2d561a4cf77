#!/usr/bin/env bash
# schemathesis against the OpenAPI description that the gateway serves: no 5xx, no answer that the
# description does not know. bash runs/serve/schemathesis.sh [N], N examples a route (default: 300).
# Makes .venv-schemathesis. The row goes to runs/results/gateway.json.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
venv=.venv-schemathesis wanted='schemathesis==4.32.5'
if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$wanted" ]; then
  echo "Setting up $venv (once) ..." >&2
  [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/python" -m pip --quiet --disable-pip-version-check install "$wanted"
  echo "$wanted" >"$venv/.installed"
fi
python=$PWD/.venv/bin/python
[ -x "$python" ] || python=${PYTHON:-python3}
exec "$python" -m runs.serve.schema_check --examples "${1:-300}"
