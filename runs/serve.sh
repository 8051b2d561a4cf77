#!/usr/bin/env bash
# The gateway with the embedded model inside, at http://127.0.0.1:8080/v1: nothing else is needed.
# Arguments go to `rlbudget serve` (see `bash runs/serve.sh --help`) and come last.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec rlbudget serve --model embedded --policy runs/models/embedded/policy_0 "$@"
