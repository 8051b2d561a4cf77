#!/usr/bin/env bash
# Trains the embedded reasoning model from nothing and measures it: about 50 minutes on 2 cores.
# Killed, it goes on where it was when started again. Arguments go to the training.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
out=runs/reasoner-run
python runs/reasoner/train.py --out "$out" "$@"
python runs/reasoner/measure.py --model "$out/model"
cp "$out/reasoner.log" runs/results/reasoner.log
