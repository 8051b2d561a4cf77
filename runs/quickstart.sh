#!/usr/bin/env bash
# The main job, the whole way on the embedded model: record, train, freeze, evaluate, decode.
# Arguments go to `rlbudget quickstart` (see `bash runs/quickstart.sh --help`).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec rlbudget quickstart "$@"
