"""Several models, one of whose answers a chooser uses: a backend over a backend for each model.

Each model decodes under its own policy, as ``rlbudget decode`` has it; ``decoding.choice`` says
whom to ask and whose answer is used. The thoughts of a model that nobody is compared with any more
are shown as they come, an answer once its model has ended: until then another one can stand in.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from starlette.responses import Response

from rlbudget.arrays import Floats
from rlbudget.decoding.choice import Answered, Choice, check_members, watching
from rlbudget.decoding.core import Core
from rlbudget.decoding.request import Request
from rlbudget.decoding.wanted import Wanted
from rlbudget.errors import UserError
from rlbudget.integrations.engine_settings import Settings
from rlbudget.models.site import ServerError
from rlbudget.policy.dial import Dial
from rlbudget.policy.network import Decision
from rlbudget.policy.prices import check_price
from rlbudget.policy.stop_policy import Full, StopPolicy
from rlbudget.serve.local import load
from rlbudget.serve.passing import Spent
from rlbudget.serve.pool import Answering, Backend, Beside, Member
from rlbudget.serve.second import is_address
from rlbudget.serve.shown import Piece
from rlbudget.serve.upstream import look_at
from rlbudget.signals.tokens import TOP_K
from rlbudget.strategies.chooser.chooser import Chooser
from rlbudget.strategies.chooser.folder import chooser_digest
from rlbudget.strategies.compose import Strategy
from rlbudget.strategies.plan import Plan, plan_of

_log = logging.getLogger("rlbudget.serve")
_PRICES = (1e-12, 1.0)
"""token prices that a request may name: between two that a chooser knows the nearer one counts"""


class Model(Backend, Protocol):
    """A backend whose requests can be decoded under a policy of their own."""

    def under(self, policy: StopPolicy) -> Backend:
        """The same under another policy that looks at the same."""
        ...


@dataclass(frozen=True, slots=True)
class Priced:
    """What stands for a chooser where a policy is asked for its prices; it decides nothing."""

    default_price: float
    digest: str
    recorded: Mapping[str, Any]
    """of the first member"""
    preset: str = "free"
    features: tuple[str, ...] = ("thinking_tokens",)
    price_range: tuple[float, float] = _PRICES
    threshold: float = 1.0

    def __call__(self, observation: Any, *, token_price: float) -> Decision:
        """Go on."""
        return Decision(stop=False, stop_probability=0.0)

    def stop_probabilities(self, observations: Any, token_price: Any) -> Floats:
        """Zeros."""
        return np.zeros(len(observations))


def under_chooser(plan: Plan, chooser: Chooser) -> Plan:
    """The plan as the gateway serves it: its prices are the chooser's.

    Raises ``UserError`` for another number of models than the chooser's, and for parts of the plan
    that would be left undone.
    """
    check_members(chooser, len(plan.chooser_models))
    parts = {
        "correction": plan.correction, "cascade": plan.cascade, "price": plan.price,
        "guard": plan.strategy.guard, "rules": plan.strategy.rules, "experiment": plan.experiment,
    }  # fmt: skip
    for name in (name for name, part in parts.items() if part is not None):
        raise UserError(f"the gateway has no [{name}] beside [chooser]: leave one of them out")
    stands = Priced(
        float(np.median(chooser.token_prices)), chooser_digest(chooser), chooser.members[0].recorded
    )
    served = replace(plan, policies={"chooser": stands}, strategy=Strategy())
    check_price(
        served.spot().token_price, _PRICES, name="the plan's token price", server="a chooser"
    )
    return served


class Choosing:
    """The models of a chooser as one backend; what it cannot steer is the first one's."""

    def __init__(self, models: Sequence[Model], chooser: Chooser, settings: Settings) -> None:
        (self.name, plan), *_ = settings.plans.items()
        self.weight = 1.0
        self.chooser = chooser
        self.members = [Member(model) for model in models]
        self.models_of = tuple(models)
        if settings.token_price is not None:
            plan = replace(plan, dial=Dial(token_price=settings.token_price))
        self.log = None if plan.audit is None else plan.audit.opened()
        first = models[0].cores[self.name]
        self.core = replace(first, plan=plan, log=self.log)

    @property
    def model(self) -> str:
        """The first one's name."""
        return self.models_of[0].model

    @property
    def passes(self) -> bool:
        """As the first one."""
        return self.models_of[0].passes

    @property
    def cores(self) -> Mapping[str, Core]:
        """By the plan's name that which prices a request; by number those of the models."""
        own = {f"model {n}": model.cores[self.name] for n, model in enumerate(self.models_of)}
        return {self.name: self.core, **own}

    async def models(self) -> list[dict[str, Any]]:
        """What the first one that answers lists."""
        for model in self.models_of[:-1]:
            try:
                return await model.models()
            except ServerError as error:
                _log.warning("a model of the chooser does not answer: %s", error)
        return await self.models_of[-1].models()

    async def forward(
        self, method: str, path: str, query: str, headers: Mapping[str, str], content: bytes,
        told: Mapping[str, str], wanted: Wanted | None = None, spent: Spent | None = None,
    ) -> Response:  # fmt: skip
        """To the first one."""
        first = self.models_of[0]
        return await first.forward(method, path, query, headers, content, told, wanted, spent)

    async def steer(
        self, wanted: Wanted, body: Mapping[str, Any], *, shadow: bool = False
    ) -> Answering:
        """A request under the chooser; ``UserError`` for one that is no single question."""
        if wanted.off:
            return await self.models_of[0].steer(wanted, body)
        said = dict(wanted.said or {})
        if "question" not in said:
            raise UserError(
                "a chooser is asked single questions: send one message, or say which in"
                " rlbudget.question"
            )
        price = self.core.spot(wanted.dial).token_price
        choice = Choice(
            self.chooser, said["question"], token_price=price, task=said.get("task", "")
        )
        quiet = replace(self.core, plan=plan_of(Full()), log=None)
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        nobody = Request(
            quiet, dial=Dial(), max_new_tokens=limit, max_thinking_tokens=wanted.thinking_budget,
            shadow=shadow, **said,
        )  # fmt: skip
        return Chosen(self, choice, wanted, body, nobody, shadow=shadow)

    def check_well(self, member: Member) -> None:
        """``ServerError`` for a model that failed a moment ago, while another one is well."""
        at = time.monotonic()
        if member.until > at and any(one.until <= at for one in self.members):
            raise ServerError("it is left out for a while")

    def note(self, choice: Choice, request_id: str | None) -> None:
        """Once a request; no fault of the log reaches anybody."""
        if self.log is None:
            return
        try:
            self.log.decision(choice.line(request_id))
        except Exception as error:  # whatever it is, the answer is there
            self.core.failures.add(f"the log: {error}")


class Chosen:
    """One request that several models decode."""

    def __init__(
        self, choosing: Choosing, choice: Choice, wanted: Wanted, body: Mapping[str, Any],
        nobody: Request, *, shadow: bool,
    ) -> None:  # fmt: skip
        self._choosing, self._choice = choosing, choice
        self._wanted, self._body, self._shadow = wanted, body, shadow
        self._nobody = nobody
        self._running: dict[int, Answering] = {}
        self._held: dict[int, list[Piece]] = {}
        """what is not shown yet"""
        self._ended: dict[int, Answered] = {}
        self._faults: list[Exception] = []

    @property
    def _now(self) -> Answering | None:
        """That of the model whose answer is given, or may be."""
        choice = self._choice
        place = choice.likely if choice.member is None else choice.member
        return next(iter(self._running.values()), None) if place is None else (
            self._running.get(place)
        )  # fmt: skip

    @property
    def request(self) -> Request:
        """Of the model whose answer is given."""
        now = self._now
        return self._nobody if now is None else now.request

    @property
    def prompt_tokens(self) -> int:
        """Tokens that this one read."""
        now = self._now
        return 0 if now is None else now.prompt_tokens

    @property
    def finish(self) -> str:
        """Why its answer ended, in OpenAI's words."""
        now = self._now
        return "stop" if now is None else now.finish

    @property
    def beside(self) -> Beside:
        """What the others spent, who was chosen and why."""
        choice, now = self._choice, self._now
        others = [one for one in self._running.values() if one is not now]
        ended = [one.request.ending for one in others]
        return Beside(
            sum(one.prompt_tokens for one in others),
            sum(one.thinking_tokens for one in ended),
            sum(one.probe_tokens for one in ended),
            sum(one.answer_tokens for one in ended),
            self._told(),
            choice.token_price,
        )

    def _told(self) -> dict[str, Any]:
        choice = self._choice
        members = choice.chooser.members
        spent = []
        for place, one in sorted(self._running.items()):
            ending = one.request.ending
            spent.append({
                "model": members[place].name, "token_ratio": members[place].ratio,
                "prompt_tokens": one.prompt_tokens, "thinking_tokens": ending.thinking_tokens,
                "probe_tokens": ending.probe_tokens, "answer_tokens": ending.answer_tokens,
                "reason": ending.reason,
            })  # fmt: skip
        told: dict[str, Any] = {"when": str(choice.way), "models": spent}
        if choice.member is not None:
            told["model"] = members[choice.member].name
            told["why"] = choice.why
        if choice.worth is not None:
            worth = choice.worth.tolist()
            told["worth"] = {
                f"{place} {one.name}": round(own, 6)
                for place, (one, own) in enumerate(zip(members, worth, strict=True))
            }
        said: dict[str, Any] = {"chosen": told}
        if (message := choice.message()) is not None:
            said["message"] = message
        return said

    async def pieces(self) -> AsyncGenerator[list[Piece], None]:
        """The thoughts and the answer of the model that is chosen; raises ``UserError`` where none
        can answer."""  # fmt: skip
        choice = self._choice
        while places := self._next():
            if places == (choice.likely,):
                async with aclosing(self._thoughts(*places)) as thoughts:
                    async for some in thoughts:
                        yield some
                continue
            found = await asyncio.gather(*map(self._whole, places))
            for place, one in zip(places, found, strict=True):
                self._take(place, one)
        assert choice.member is not None
        if not self._shadow:  # what is in shadow is no decision
            self._choosing.note(choice, (self._wanted.said or {}).get("request_id"))
        yield self._held[choice.member]

    def _next(self) -> tuple[int, ...]:
        try:
            return self._choice.next()
        except UserError as error:
            if all(isinstance(fault, UserError) for fault in self._faults):
                raise
            raise ServerError(str(error)) from None

    def _take(self, place: int, found: Answered | Exception) -> None:
        if isinstance(found, Exception):
            self._faults.append(found)
        self._choice.take(place, found)

    async def _thoughts(self, place: int) -> AsyncGenerator[list[Piece], None]:
        """The thoughts of a model whose answer is given unless it fails, as they come."""
        held = self._held[place] = []
        try:
            async with aclosing(self._followed(place)) as pieces:
                async for some in pieces:
                    held += [piece for piece in some if piece.kind == "answer"]
                    if thoughts := [piece for piece in some if piece.kind == "thought"]:
                        yield thoughts
        except Exception as error:  # whatever it is, another model can answer
            self._take(place, error)
        else:
            self._take(place, self._ended[place])

    async def _whole(self, place: int) -> Answered | Exception:
        """What a model does; its fault is an answer too, for another one can answer."""
        held = self._held[place] = []
        try:
            async with aclosing(self._followed(place)) as pieces:
                async for some in pieces:
                    held += some
        except Exception as error:  # whatever it is, another model can answer
            return error
        return self._ended[place]

    async def _followed(self, place: int) -> AsyncGenerator[list[Piece], None]:
        """What a model says, to its end."""
        choice, member = self._choice, self._choosing.members[place]
        self._choosing.check_well(member)
        under = choice.watching(place)
        wanted = replace(self._wanted, dial=Dial(token_price=choice.price_of(place)))
        model = self._choosing.models_of[place].under(under)
        core = model.cores[wanted.name]
        body = self._body
        if body.get("temperature") is None:
            temperature = core.plan.recorded.get("temperature", core.profile.temperature)
            body = {**body, "temperature": temperature}
        member.running += 1
        try:
            one = await model.steer(wanted, body, shadow=self._shadow)
            self._running[place] = one
            async with aclosing(one.pieces()) as pieces:
                async for some in pieces:
                    yield some
            member.answered()
            self._ended[place] = choice.ended(place, under, one.request.decoded(), core.profile)
        except ServerError as error:
            member.failed(error)
            raise
        finally:
            member.running -= 1


@asynccontextmanager
async def open_models(
    settings: Settings, chooser: Chooser, *, key: str | None = None, timeout: float = 120.0,
    approximate: bool = False, top_logprobs: int = TOP_K, retries: int = 3,
) -> AsyncIterator[Choosing]:  # fmt: skip
    """The models of a plan ``under_chooser``: addresses are looked at, other names loaded.

    Raises ``UserError`` where one cannot be loaded or served, ``ServerError`` where one does not
    answer.
    """
    (name, plan), *_ = settings.plans.items()
    async with AsyncExitStack() as stack:
        models: list[Model] = []
        for place, model in enumerate(plan.chooser_models):
            asked = watching(chooser, place)
            own = Settings({name: plan_of(asked)}, {name: asked}, settings.profile)
            tokenizer = plan.chooser_tokenizers[place] if plan.chooser_tokenizers else None
            try:
                models.append(
                    await stack.enter_async_context(
                        look_at(model, own, tokenizer=tokenizer or None, key=key, timeout=timeout,
                                approximate=approximate, top_logprobs=top_logprobs,
                                retries=retries, cut="here")
                        if is_address(model) else load(model, own, key=key)
                    )
                )  # fmt: skip
            except UserError as error:
                shown = chooser.members[place].name
                raise UserError(f"the chooser's model {place}, {shown!r}: {error}") from None
        yield Choosing(models, chooser, settings)
