"""schemathesis against the OpenAPI description of the gateway: what does it find?

    bash runs/serve/schemathesis.sh [N]

``rlbudget serve`` in its own process, before the server of ``fuzz.py``, whose streams are good
here. schemathesis makes requests that the description allows and such that it does not, and looks
for answers of 5xx, of statuses and of forms that are not described. It lies in its own environment.
"""

from __future__ import annotations

import argparse
import re
import subprocess

from runs.common import ROOT, row, write_part
from runs.serve.fuzz import Upstream, listening
from runs.serve.peers import reluctant, scratch, serving
from runs.serve.replay_upstream import make_script

SEED = 0
CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance",
          "response_schema_conformance")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--examples", type=int, default=300, help="of each route (default: 300)")
    args = parser.parse_args()
    upstream = Upstream(make_script())
    with scratch() as folder, listening(upstream) as url:
        plan = folder / "plan.toml"
        plan.write_text(f'policy = "{reluctant(folder)}"\n')
        with serving(plan, url, folder) as gateway:
            command = [
                str(ROOT / ".venv-schemathesis" / "bin" / "schemathesis"), "run",
                f"{gateway.root}/openapi.json", "--url", gateway.root, "--checks",
                ",".join(CHECKS), "--max-examples", str(args.examples), "--seed", str(SEED),
                "--no-color", "--request-timeout", "20", "--continue-on-failure",
            ]  # fmt: skip
            made = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder,
                                  timeout=3000)  # fmt: skip
    said = made.stdout + made.stderr
    cases = re.search(r"\d[\d,]* generated[^\n]*", said)
    rows = [
        row("schemathesis on the OpenAPI description", "no 500, no hang, nothing undescribed",
            "nothing found" if made.returncode == 0 else f"status {made.returncode}",
            made.returncode == 0),
    ]  # fmt: skip
    write_part("gateway", "schemathesis", rows, seeds=[SEED], checks=CHECKS,
               examples=args.examples, cases=cases[0] if cases else "",
               said=said[-4000:] if made.returncode else "")  # fmt: skip


if __name__ == "__main__":
    main()
