#!/usr/bin/env bash
# The conformance suite in a real llama-cpp-python: bash runs/integrations/llama_cpp.sh [--n N]
# Makes a venv of its own, .venv-llama-cpp, for which llama-cpp-python is compiled: about 10 minutes
# on two free cores. Needs pip, cmake and a C++ compiler.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
source runs/models/smol_setup.sh
venv=.venv-llama-cpp
wanted=$(cat pyproject.toml runs/integrations/llama_cpp.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$wanted" ]; then
  echo "Building llama-cpp-python in $venv (once) ..." >&2
  [ -x "$venv/bin/python" ] || python -m venv "$venv"
  pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check)
  # Fixed instruction sets: with those of the machine, processors with AMX crash at the first decode.
  CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF" \
    "${pip[@]}" install 'llama-cpp-python==0.3.36'
  "${pip[@]}" install -c constraints.txt google-re2 msgspec numpy orjson pyarrow rich safetensors tyro transformers jinja2
  "${pip[@]}" install --no-deps -e .
  echo "$wanted" >"$venv/.installed"
fi
folder=$(python -c 'from rlbudget.models.smollm2 import *; print(smollm2_folder())')
file=$(mktemp -d)/model.gguf
trap 'rm -rf "$(dirname "$file")"' EXIT
python -m runs.models.smol_gguf "$folder" "$file"
"$venv/bin/python" -m runs.integrations.llama_cpp_check "$folder" "$file" "$@"
