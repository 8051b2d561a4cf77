#!/usr/bin/env bash
# Trains the embedded reasoning model from nothing and measures it: about 65 minutes on 2 cores.
# Two stages: small questions until they are mastered, then the whole range for a short while, so
# that a first attempt is often wrong and the checks still find out. Killed, it goes on where it
# was when started again. The package's copy is rlbudget/models/embedded.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
first=out/reasoner/easy out=out/reasoner/full
python -m runs.models.reasoner.train --out "$first" --stage easy
python -m runs.models.reasoner.train --out "$out" --stage full --start "$first" \
  --steps 1600 --sequences 60000 --rate 2e-3 --muon-rate 5e-3 --every 400 --seed 1
cp "$out"/model/* rlbudget/models/embedded/
chmod 644 rlbudget/models/embedded/*
cat "$first/reasoner.log" "$out/reasoner.log" >runs/results/reasoner.log
python -m runs.models.reasoner.measure
