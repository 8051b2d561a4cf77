#!/usr/bin/env bash
# Right and wrong answers scored by rlbudget, by math-verify and by lm-evaluation-harness, and how
# fast: bash runs/quality/answers.sh [--data FOLDER] [--quick]. Writes runs/results/answers.json.
# The rivals' scorers run in a venv of their own, .venv-lm-eval (700 MB, no torch).
# Needs Python 3.11 or newer and pip. Set PYTHON to choose the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

venv=.venv-lm-eval
stamp=$venv/.installed
wanted='lm-eval[math]==0.4.13 math-verify==0.9.0 sympy==1.14.0'
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  echo "Setting up $venv (once) ..." >&2
  [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
  # shellcheck disable=SC2086
  "$venv/bin/python" -m pip --quiet --disable-pip-version-check install $wanted
  echo "$wanted" >"$stamp"
fi

.venv/bin/python -m runs.quality.answers --rival-python "$venv/bin/python" "$@"
