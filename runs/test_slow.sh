#!/usr/bin/env bash
# The suites marked `slow`: fresh virtual environments, long laws. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
# A short version of the attacks on traces; each ends with status 1 where something gives way.
python -m runs.trust.fuzz_parts --n 40 --structured 100
python -m runs.trust.fuzz_import --lines 200 --questions 100
python -m runs.trust.crash_traces --rounds 3
exec pytest -m slow "$@"
