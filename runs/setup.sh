# Sourced by the scripts here: makes the checkout's own venv once and puts it on the PATH.
# Needs Python 3.11 or newer and pip, nothing else. Set PYTHON to choose the interpreter.
# Run from the root of the checkout; a second run finds the venv and only checks it.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

setup_venv() {
  local python=${PYTHON:-python3} stamp=.venv/.installed wanted
  wanted=$(cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      echo "rlbudget needs Python 3.11 or newer; set PYTHON to one" >&2
      return 1
    fi
    echo "Setting up .venv (once; the pinned packages of constraints.txt) ..." >&2
    "$python" -m venv .venv || return 1
    # torch first and alone: the pin in constraints.txt chooses the build.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
      -c constraints.txt torch || return 1
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
      -c constraints.txt -e '.[all,dev]' || return 1
    echo "$wanted" >"$stamp"
  fi
  PATH=$PWD/.venv/bin:$PATH
  export PATH
}

setup_venv || { echo "set-up failed: see the lines above" >&2; exit 1; }
