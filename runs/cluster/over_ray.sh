#!/usr/bin/env bash
# Make a venv beside the checkout's own that adds rlbudget[ray] to it, and check recording over Ray:
# `python -m runs.cluster.over_ray` there.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
set -euo pipefail
. runs/setup.sh
setup_venv
if ! .venv-ray/bin/python -c 'import ray.data' 2>/dev/null; then
  .venv/bin/python -m venv .venv-ray
  site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
  site .venv/bin/python >"$(site .venv-ray/bin/python)/checkout.pth"
  .venv-ray/bin/python -m pip install --quiet --disable-pip-version-check \
    -c constraints.txt 'ray[data]==2.60.0'
fi
.venv-ray/bin/python -m runs.cluster.over_ray "$@"
