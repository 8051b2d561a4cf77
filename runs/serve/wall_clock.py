"""What the gateway saves by the clock: 100 questions through llama-server, policy on and off.

    python -m runs.serve.wall_clock [--n 100]

The SmolLM2 reasoner in a real llama-server on loopback, ``rlbudget serve`` with the kept policy
over 20 log-probabilities before it. Every question is asked twice in turn, greedily: steered at
the policy's own price, and with ``off``, which passes through untouched. Needs what
``runs/integrations/llama_server.sh`` makes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.request
from typing import Any

from rlbudget.tasks.load import load_task
from runs.common import KEPT, row, write_part
from runs.serve.peers import scratch, serving
from runs.serve.real_servers import real_server

SEED = 17
SHARE = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=100, help="questions (default: 100)")
    args = parser.parse_args()
    questions = load_task("smollm2", n=args.n, seed=SEED).questions
    with scratch() as folder, real_server("llama-server", folder) as url:
        plan = folder / "plan.toml"
        plan.write_text(f'policy = "{(KEPT / "policy_top").resolve()}"\n')
        with serving(plan, url, folder) as gateway:
            ask(gateway.url, "1 + 1 =", off=True)
            took: dict[bool, list[tuple[float, int]]] = {False: [], True: []}
            for place, one in enumerate(questions):
                for off in (place % 2 == 0, place % 2 == 1):
                    took[off].append(ask(gateway.url, one.question, off=off))
                print(".", end="", file=sys.stderr, flush=True)
    seconds, tokens = ({off: sum(one[k] for one in each) for off, each in took.items()}
                       for k in (0, 1))  # fmt: skip
    saved = 1 - seconds[False] / seconds[True]
    fewer = 1 - tokens[False] / tokens[True]
    rows = [
        row(f"wall-clock saved through llama-server, {args.n} questions, policy on against off",
            f"≥ {SHARE} × the tokens saved",
            f"{saved:.1%} of the time, {fewer:.1%} of the tokens: {saved / fewer:.2f} ×",
            saved >= SHARE * fewer > 0),
    ]  # fmt: skip
    write_part(
        "gateway", "wall-clock", rows, seeds=[SEED],
        seconds={"on": round(seconds[False], 1), "off": round(seconds[True], 1)},
        tokens={"on": tokens[False], "off": tokens[True]},
    )  # fmt: skip


def ask(url: str, question: str, *, off: bool) -> tuple[float, int]:
    """Seconds, and tokens that were made."""
    body = {"model": "any", "messages": [{"role": "user", "content": question}],
            "temperature": 0.0, "max_tokens": 600, "rlbudget": {"off": off}}  # fmt: skip
    asked = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    begun = time.monotonic()
    with urllib.request.urlopen(asked, timeout=600) as response:
        answer: dict[str, Any] = json.load(response)
    return time.monotonic() - begun, int(answer["usage"]["completion_tokens"])


if __name__ == "__main__":
    main()
