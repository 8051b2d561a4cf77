#!/usr/bin/env bash
# The suites marked `slow`: fresh virtual environments, long laws. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec pytest -m slow "$@"
