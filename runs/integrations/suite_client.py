"""The conformance suite (``suite.py``) by the client of OpenAI-compatible servers."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from rlbudget.integrations import openai
from rlbudget.strategies.hybrid import RequestFacts
from runs.integrations.suite import Suite, keep, others, row_of


def check_client(engine: str, address: str, folder: Path | str, suite: Suite, *, at_once: int
                 ) -> None:  # fmt: skip
    """Ask a server, ``at_once`` questions at a time, and keep the row of one of ``ENGINES``.

    ``address`` ends in ``/v1``, ``folder`` holds the tokenizer.
    """
    found = asyncio.run(_exits(address, folder, suite, at_once))
    keep(engine, [row_of(engine, found, suite)], differences=others(found, suite))


async def _exits(address: str, folder: Path | str, suite: Suite, at_once: int) -> list[list[Any]]:
    """As those of a ``Suite``."""
    async with openai.connect(address, suite.plan, folder) as server:
        free = asyncio.Semaphore(at_once)

        async def ask(asked: RequestFacts) -> list[Any]:
            async with free:
                one = await openai.decode(
                    server, asked.question, temperature=0.0, task=asked.task,
                    metadata=asked.metadata,
                )  # fmt: skip
            print(".", end="", file=sys.stderr, flush=True)
            return [one.thinking_tokens, one.reason]

        return list(await asyncio.gather(*map(ask, suite.requests)))
