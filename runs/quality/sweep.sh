#!/usr/bin/env bash
# Nested cross-validation of the ensemble's settings with Optuna on the embedded model's and SmolLM2's
# training questions: about 25 minutes on one core. It goes on with out/sweep/ where there is one.
# Arguments go to runs/quality/sweep.py (--traces FOLDER, --trials N, --presets probe).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
python -W ignore -m runs.quality.sweep "$@"
