"""The second model of a plan, a cascade's large one or a correction's: a server, or one in here."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from rlbudget.decoding.core import Core, HandOver
from rlbudget.decoding.decode import second_model
from rlbudget.decoding.decoded import Decoded
from rlbudget.errors import UserError
from rlbudget.integrations import openai
from rlbudget.models import load_model
from rlbudget.models.openai_server import find_model
from rlbudget.models.site import find_site
from rlbudget.models.wire import open_endpoint
from rlbudget.policy.prices import nearest_price
from rlbudget.policy.stop_policy import Full, StopPolicy
from rlbudget.serve.engine import OFF, XARGS, has_processor
from rlbudget.strategies.plan import Plan

_log = logging.getLogger("rlbudget.serve")


def is_address(name: str) -> bool:
    """Whether a model's name is that of a server."""
    return name.startswith(("http://", "https://"))


class SecondServer:
    """A second model behind a server; for threads a callable, for the gateway's loop ``ask``."""

    def __init__(self, server: openai.Server, plan: Plan, policy: StopPolicy) -> None:
        self._server, self._policy = server, policy
        self._temperature = plan.recorded_second.get("temperature")
        self._loop = asyncio.get_running_loop()

    async def ask(self, wish: HandOver) -> Decoded:
        """Its answer; raises as ``openai.decode`` does. A cancelled wait closes its stream."""
        price = nearest_price(wish.token_price, self._policy.price_range)
        return await openai.decode(
            self._server, wish.question, temperature=self._temperature, token_price=price
        )

    def __call__(self, wish: HandOver) -> Decoded:
        """The same, from another thread than the loop's."""
        return asyncio.run_coroutine_threadsafe(self.ask(wish), self._loop).result()


async def handed_over(core: Core, wish: HandOver) -> Decoded | Exception:
    """What the second model gives; its fault is an answer too, and costs nobody theirs."""
    if not isinstance(core.second, SecondServer):
        return await asyncio.to_thread(core.hand_over, wish)
    try:
        return await core.second.ask(wish)
    except Exception as error:  # whatever it is, the first model can still answer
        _log.warning("the second model failed: %s; the first one answers", error)
        return error


@asynccontextmanager
async def second_of(
    plan: Plan, *, key: str | None = None, retries: int = 3, timeout: float = 120.0,
    deadline: float = 3600.0,
) -> AsyncIterator[Any]:  # fmt: skip
    """What answers for a plan's cascade or correction; None where it has no second model.

    Raises ``UserError`` where the second model cannot be loaded or served, ``ServerError`` where
    its server does not answer.
    """
    name = plan.second_model or plan.large_model
    if name is None:
        yield None
        return
    if not is_address(name):
        model = await asyncio.to_thread(load_model, name)
        one, answer = threading.Lock(), second_model(model, plan)

        def alone(wish: HandOver) -> Decoded:
            with one:  # a model in here decodes one request at a time
                return answer(wish)

        yield alone
        return
    own = plan.large_policy or plan.second_policy
    asked: StopPolicy = Full() if own is None else own
    recorded = plan.recorded_second
    async with AsyncExitStack() as stack:
        site = find_site(name, key, "http://HOST:PORT/v1")
        opened = open_endpoint(site, retries=retries, timeout=timeout, deadline=deadline)
        endpoint = await stack.enter_async_context(opened)
        found, _ = await find_model(endpoint, None)
        processor = await has_processor(endpoint, found)
        try:
            server = await stack.enter_async_context(
                openai.connect(
                    name, asked, plan.second_tokenizer or found, model=found, key=key,
                    profile=recorded.get("profile"), stride=recorded.get("stride"),
                    max_thinking_tokens=recorded.get("max_tokens"), retries=retries,
                    timeout=timeout, deadline=deadline,
                    fields={XARGS: OFF} if processor else None,
                )
            )  # fmt: skip
        except UserError as error:
            raise UserError(f"the plan's second model at {site.name}: {error}") from None
        yield SecondServer(server, plan, asked)
