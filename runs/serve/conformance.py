"""The 100 questions of the conformance suite through the gateway: does it exit as the replay does?

    python -m runs.serve.conformance llama-server|vLLM [--n 100]

A real server of the SmolLM2 reasoner on loopback, ``rlbudget serve`` with ``plan_top.toml`` (a
policy, a guard, rules on task and metadata) before it, chat completions of it. Needs what
``runs/integrations/llama_server.sh`` or ``runs/integrations/vllm.sh`` makes.
"""  # fmt: skip

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

import aiohttp

from runs.common import write_part
from runs.integrations.suite import Suite, load_suite, others, plan_file, row_of
from runs.serve.peers import scratch, serving
from runs.serve.real_servers import AT_ONCE, SERVERS, real_server

PLAN = "plan_top"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("server", choices=SERVERS)
    parser.add_argument("--n", type=int, default=100, help="questions (default: 100)")
    args = parser.parse_args()
    suite = load_suite(PLAN).first(args.n)
    with (
        scratch() as folder,
        real_server(args.server, folder) as url,
        serving(plan_file(PLAN), url, folder) as gateway,
    ):
        found = asyncio.run(exits(gateway.url, suite, AT_ONCE[args.server]))
    engine = f"gateway, {args.server}, cut here"
    rows = [row_of(engine, found, suite)]
    write_part("gateway", f"conformance, {args.server}", rows, differences=others(found, suite))


async def exits(url: str, suite: Suite, at_once: int) -> list[list[Any]]:
    """Thinking tokens and reason of each question, greedy."""
    free = asyncio.Semaphore(at_once)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def ask(place: int) -> list[Any]:
            asked = suite.requests[place]
            said = {"question": asked.question, "task": asked.task, "metadata": asked.metadata}
            body = {"model": "any", "messages": [{"role": "user", "content": asked.question}],
                    "temperature": 0.0, "rlbudget": said}  # fmt: skip
            async with free, session.post(f"{url}/chat/completions", json=body) as response:
                answer = await response.json()
            print(".", end="", file=sys.stderr, flush=True)
            if "rlbudget" not in answer:
                raise SystemExit(f"question {place}: {answer}")
            return [answer["rlbudget"]["thinking_tokens"], answer["rlbudget"]["reason"]]

        return list(await asyncio.gather(*map(ask, range(len(suite.requests)))))


if __name__ == "__main__":
    main()
