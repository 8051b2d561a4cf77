"""The gateway before a real vLLM, in both ways of cutting: exits as in a replay.

    python -m runs.serve.engine_check [--questions 100] [--only engine|here] [--kept]

One vLLM of the SmolLM2 reasoner, with our logits processor under ``plan.toml`` of the conformance
suite; before it one gateway under the same plan, which lets the engine cut, and one under
``plan_top.toml``, which cuts by 20 log-probabilities a token. Questions are asked as token ids,
greedy, several at a time. Tokens do not tell a stop at a checkpoint from a natural end right there
(SmolLM2's exit text is the end itself): in the engine's row both count as the other, and how often
that was needed is said. ``--kept`` writes the part ``engine`` of ``runs/results/gateway.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import aiohttp

from rlbudget.integrations.engine_settings import settings_for
from rlbudget.models.profiles import find_profile
from rlbudget.models.smollm2 import smollm2_folder
from rlbudget.models.tokenizer import read_tokenizer
from rlbudget.serve.app import make_app
from rlbudget.serve.gateway import Gateway
from rlbudget.serve.upstream import look_at
from rlbudget.strategies.hybrid import RequestFacts
from runs.common import row, write_part
from runs.integrations.suite import SEED, WANTED, Suite, load_suite, others, plan_file
from runs.integrations.toy_server import running
from runs.integrations.vllm_process import PROCESSOR, vllm_server

Way = Literal["engine", "here"]
PLANS: dict[Way, str] = {"engine": "plan", "here": "plan_top"}
AT_ONCE, CONTEXT = 16, 1024
MEMORY = "0.2"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--only", choices=("engine", "here"))
    parser.add_argument("--kept", action="store_true", help="write runs/results/gateway.json")
    arguments = parser.parse_args()
    folder = str(smollm2_folder())
    python = Path(os.environ.get("VLLM_PYTHON", ".venv-vllm/bin/python")).absolute()
    os.environ["RLBUDGET_PLAN"] = str(plan_file(PLANS["engine"]))
    ways: tuple[Way, ...] = ("engine", "here") if arguments.only is None else (arguments.only,)
    rows, differences = [], {}
    with vllm_server(
        folder, CONTEXT, "--logits-processors", PROCESSOR, "--max-num-seqs", str(AT_ONCE),
        "--gpu-memory-utilization", MEMORY, python=python,
    ) as address:  # fmt: skip
        for way in ways:
            suite = load_suite(PLANS[way]).first(arguments.questions)
            found = exits(f"{address}/v1", folder, suite, way)
            rows.append(_row(way, found, suite))
            differences[way] = others(found, suite)
    if arguments.kept:
        write_part("gateway", "engine", rows, seeds=[SEED], differences=differences)
    print(json.dumps({"rows": rows, "differences": differences}))
    sys.exit(not all(one["met"] for one in rows))


def exits(url: str, folder: str, suite: Suite, way: Way) -> list[list[Any]]:
    """(thinking tokens, reason) of each question, through a gateway of its own."""
    settings = settings_for({"default": suite.plan})
    gateway = Gateway(settings)
    opens = partial(look_at, url, settings, tokenizer=folder, cut=way)
    with running(make_app(gateway, [opens]), lifespan="on") as root:
        return asyncio.run(_asked(root, folder, suite))


async def _asked(root: str, folder: str, suite: Suite) -> list[list[Any]]:
    tokenizer, profile = read_tokenizer(folder), find_profile("smollm2")
    free = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession() as session:

        async def ask(asked: RequestFacts) -> list[Any]:
            body = {
                "model": folder, "prompt": profile.prompt(asked.question, tokenizer),
                "temperature": 0.0,
                "rlbudget": {"question": asked.question, "task": asked.task,
                             "metadata": dict(asked.metadata)},
            }  # fmt: skip
            async with free, session.post(f"{root}/completions", json=body) as response:
                said = await response.json()
            print(".", end="", file=sys.stderr, flush=True)
            if "rlbudget" not in said:
                return ["error", said]
            return [said["rlbudget"]["thinking_tokens"], said["rlbudget"]["reason"]]

        return list(await asyncio.gather(*map(ask, suite.requests)))


def _row(way: Way, found: list[list[Any]], suite: Suite) -> dict[str, Any]:
    pairs = list(zip(found, suite.exits, strict=True))
    same = sum(list(one) == other for one, other in pairs)
    if way == "here":
        said, reached = "cut here", f"{same} of {len(pairs)}"
    else:
        alike = sum(
            one[0] == other[0] and {one[1], other[1]} == {"policy", "natural"}
            for one, other in pairs
        )
        said = "cut in the engine"
        reached = f"{same + alike} of {len(pairs)} ({alike} natural ends at a checkpoint)"
        same += alike
    return row(f"questions, greedy, with the exit of the replay of {suite.name}.toml: {said}",
               f">= {WANTED:.0%}", reached, same >= WANTED * len(pairs))  # fmt: skip


if __name__ == "__main__":
    main()
