#!/usr/bin/env bash
# Lint, types, tests: everything a change must pass, in under ten minutes. Arguments go to pytest.
# The slow suites have a script of their own: runs/test_slow.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
# The report is tested in a real browser where there is one or where it can be had.
if ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  timeout 90 sh -c "apt-get update && apt-get install -y --no-install-recommends chromium" \
    >/dev/null 2>&1 ||
    echo "no chromium: the report's tests are skipped" >&2
fi
ruff check .
ruff format --check .
mypy
mypy -p runs
# Two workers, one thread each: small networks only wait for each other on more.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec pytest -n 2 --dist loadfile --hypothesis-profile=same "$@"
