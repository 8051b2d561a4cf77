"""A model inside the gateway: no server behind it, for trying out and for small models."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from rlbudget.decoding.core import Core
from rlbudget.decoding.decode import core_of, run_request
from rlbudget.decoding.request import Request, State
from rlbudget.decoding.wanted import Wanted
from rlbudget.errors import UserError
from rlbudget.integrations.engine_settings import Settings
from rlbudget.models import load_model
from rlbudget.policy.dial import Dial
from rlbudget.policy.stop_policy import Full, StopPolicy
from rlbudget.serve.chat import error_body
from rlbudget.serve.passing import Spent
from rlbudget.serve.second import second_of
from rlbudget.serve.shown import Piece, Shown
from rlbudget.strategies.plan import Plan, plan_of
from rlbudget.tasks.conversations import text_of

if TYPE_CHECKING:
    from rlbudget.models.transformers_model import TransformersModel


_NEVER = Plan({"off": Full()}, loops=False)
"""stops nothing"""


class Local:
    """A local model under the plans; one request at a time, the others wait."""

    def __init__(
        self, model: TransformersModel, cores: Mapping[str, Core],
        lock: threading.Lock | None = None,
    ) -> None:  # fmt: skip
        self.model = model.name
        self.weight = 1.0
        self.passes = False
        self.cores = cores
        self._network = model
        self._lock = lock or threading.Lock()
        self._created = int(time.time())

    def under(self, policy: StopPolicy) -> Local:
        """The same model under another policy that looks at the same."""
        plan = plan_of(policy)
        cores = {name: replace(core, plan=plan) for name, core in self.cores.items()}
        return Local(self._network, cores, self._lock)

    async def models(self) -> list[dict[str, Any]]:
        """The one there is."""
        return [{"id": self.model, "object": "model", "created": self._created,
                 "owned_by": "rlbudget"}]  # fmt: skip

    async def forward(
        self, method: str, path: str, query: str, headers: Mapping[str, str], content: bytes,
        told: Mapping[str, str], wanted: Wanted | None = None, spent: Spent | None = None,
    ) -> Response:  # fmt: skip
        """There is no server that it could pass through to: 400, or 404 for another address."""
        said = f"a model inside the gateway cannot serve this request: {method} {path}"
        why = told.get("x-rlbudget-passed-through", "")
        status = 400 if method == "POST" and path.endswith("/completions") else 404
        content = error_body(status, f"{said} ({why})")
        return Response(content, status, media_type="application/json")

    async def steer(
        self, wanted: Wanted, body: Mapping[str, Any], *, shadow: bool = False
    ) -> LocalSteered:
        """A request under its plan; ``UserError`` for one that is no single question."""
        core, dial = self.cores[wanted.name], wanted.dial
        if wanted.off:  # it thinks to its own end, and is no decision of the plan's
            core, dial = replace(core, plan=_NEVER, composed=None, log=None), Dial()
        question = _question(body)
        temperature = body.get("temperature")
        if temperature is None:
            temperature = core.plan.recorded.get("temperature", core.profile.temperature)
        said = body.get("max_completion_tokens") or body.get("max_tokens")
        seed = (body.get("seed") or 0) % (1 << 63)
        request = Request(
            core, dial=dial, max_new_tokens=said,
            max_thinking_tokens=wanted.thinking_budget, shadow=shadow,
            settings={"temperature": temperature, "row_seed": seed},
            **{"question": question, **(wanted.said or {})},
        )  # fmt: skip
        return LocalSteered(
            self._network, core, request, question, self._lock, float(temperature), seed
        )


class LocalSteered:
    """A request that the model inside the gateway decodes."""

    def __init__(
        self, model: TransformersModel, core: Core, request: Request, question: str,
        lock: threading.Lock, temperature: float, seed: int,
    ) -> None:  # fmt: skip
        self.request = request
        self.prompt_tokens = len(model.profile.prompt(question, model.tokenizer))
        self.finish = "stop"
        self.beside = None
        self._model, self._core, self._question = model, core, question
        self._lock, self._temperature, self._seed = lock, temperature, seed
        self._left = False

    async def pieces(self) -> AsyncGenerator[list[Piece], None]:
        """What becomes visible, as it does."""
        loop = asyncio.get_running_loop()
        found: asyncio.Queue[list[Piece] | None] = asyncio.Queue()

        def tell(pieces: list[Piece] | None) -> None:
            loop.call_soon_threadsafe(found.put_nowait, pieces)

        decoding = loop.run_in_executor(None, self._decode, tell)
        try:
            while (pieces := await found.get()) is not None:
                if pieces:
                    yield pieces
            await decoding
        finally:
            self._left = True

    def _decode(self, tell: Any) -> None:
        request, core = self.request, self._core
        shown = Shown(core, request)
        exit_ids = len(core.vocabulary.exit_ids)
        forced = 0

        def told(before: State, token: int, was_forced: bool) -> None:
            nonlocal forced
            if self._left:
                raise _ClientLeftError
            if was_forced:
                forced += 1
                if forced <= exit_ids:
                    tell(shown.exit() if forced == 1 else [])
                    return
            text = core.vocabulary.text([token], special=True)
            tell(shown.pushed(before, text, end=token in core.eos))

        try:
            with self._lock:
                run_request(core, self._model, request, self._question, seed=self._seed,
                            temperature=self._temperature, told=told)  # fmt: skip
            tell(shown.rest())
        except _ClientLeftError:
            request.finish()
            request.close()
        finally:
            tell(None)


class _ClientLeftError(Exception):
    pass


def _question(body: Mapping[str, Any]) -> str:
    if "messages" not in body:
        prompt = body["prompt"]
        if isinstance(prompt, str):
            return prompt
        raise UserError("a model inside the gateway takes questions as text")
    asked = [message for message in body["messages"] if message.get("role") == "user"]
    if len(asked) != 1 or len(body["messages"]) != 1:
        raise UserError("a model inside the gateway answers single questions: send one message")
    return text_of(asked[0]["content"])


@asynccontextmanager
async def load(name: str, settings: Settings, *, key: str | None = None) -> AsyncIterator[Local]:
    """Load a model and bind the plans to it; ``key`` is for a second model behind a server. Raises
    ``UserError`` as ``load_model`` and ``second_of`` do."""
    model = await asyncio.to_thread(load_model, name)
    async with AsyncExitStack() as stack:
        cores = {
            plan_name: core_of(model, plan,
                               second=await stack.enter_async_context(second_of(plan, key=key)))
            for plan_name, plan in settings.plans.items()
        }  # fmt: skip
        yield Local(model, cores)
