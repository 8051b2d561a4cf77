#!/usr/bin/env bash
# Lint, types, tests: everything a change must pass, in under ten minutes. Arguments go to pytest.
# The slow suites have a script of their own: runs/test_slow.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
ruff check .
ruff format --check .
mypy
exec pytest "$@"
