"""A policy folder that is overwritten all the time while it is loaded: each load is one version.

python -m runs.trust.loads [--n 10000]
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from rlbudget.errors import UserError
from rlbudget.policy.folder import load_policy, save_policy
from runs.common import row, write_part
from runs.trust.kinds import policy_of


def loaded(n: int, folder: Path) -> tuple[Counter[str], Counter[str]]:
    """How often each version was loaded, and what else came of ``n`` loads."""
    policies = [policy_of(1), policy_of(2)]
    names = {policy.digest: f"version {k}" for k, policy in enumerate(policies, 1)}
    save_policy(folder, policies[0])
    writer = os.fork()
    if writer == 0:
        try:
            while True:
                for policy in policies:
                    save_policy(folder, policy, overwrite=True)
        finally:
            os._exit(1)
    seen, faults = Counter[str](), Counter[str]()
    try:
        for _ in range(n):
            try:
                seen[names[load_policy(folder).digest]] += 1
            except (UserError, KeyError) as error:
                faults[str(error)[:120]] += 1
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    if load_policy(folder).digest not in names:
        faults["the kill left another version"] += 1
    save_policy(folder, policies[0], overwrite=True)
    if os.listdir(folder.parent) != [folder.name]:
        faults["the kill left something beside it"] += 1
    return seen, faults


def row_of(n: int) -> tuple[dict[str, Any], dict[str, int]]:
    """The row, and how often each version was loaded."""
    with tempfile.TemporaryDirectory() as scratch:
        seen, faults = loaded(n, Path(scratch) / "policy")
    times = ", ".join(f"{name} {count:,}" for name, count in sorted(seen.items()))
    found = f"{sum(faults.values())} failures; {times}"
    return row(f"a policy folder overwritten while it is loaded {n:,} times", "0 failures", found,
               not faults), dict(seen)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=10_000, help="loads")
    args = parser.parse_args()
    result, seen = row_of(args.n)
    write_part("crash", "loads", [result], seen=seen)


if __name__ == "__main__":
    main()
