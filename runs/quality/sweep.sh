#!/usr/bin/env bash
# Search network and schedule with Optuna on the embedded model's questions and hold the winner
# against the defaults: about 35 minutes on one core. It goes on with out/sweep/ where there is one.
# Arguments go to runs/quality/sweep.py (--traces FOLDER, --trials N, --preset probe).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
python -W ignore -m runs.quality.sweep "$@"
