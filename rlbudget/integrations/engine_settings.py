"""What an operator says to the adapters inside vLLM and SGLang, and a client with a request."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any

from rlbudget.decoding.core import Core, Engine, bind
from rlbudget.decoding.wanted import Wanted
from rlbudget.errors import UserError
from rlbudget.models.profiles import Profile, find_profile
from rlbudget.policy.dial import DIALS, Dial
from rlbudget.policy.folder import load_policy
from rlbudget.policy.prices import check_price
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.strategies.plan import Plan, load_plan, plan_of

PLAN, POLICY = "RLBUDGET_PLAN", "RLBUDGET_POLICY"
PROFILE, TOKEN_PRICE = "RLBUDGET_PROFILE", "RLBUDGET_TOKEN_PRICE"
"""The environment variables that are read at start-up."""

PREFIX = "rlbudget_"
_KINDS = {
    "token_price": "a number", "effort": "a text", "max_em_loss": "a number",
    "answer_worth": "a number", "price_per_million": "a number",
    "thinking_budget": "a whole number of tokens, at least 1", "off": "true or false",
    "policy": "a text", "task": "a text", "metadata": "a JSON object as text",
    "question": "a text", "request_id": "a text", "fingerprint": "a text",
}  # fmt: skip
"""What a request may say; in ``vllm_xargs`` each name begins with ``PREFIX``."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for every request."""

    plans: Mapping[str, Plan]
    """by the name that requests know it by; the first is for those that name none"""
    served: Mapping[str, StopPolicy]
    """what decides in each"""
    profile: str | None = None
    """None: that of each plan or of its policy's traces"""
    token_price: float | None = None
    """None: each plan's own"""

    def profile_of(self, plan: Plan) -> Profile:
        """The exit profile; ``UserError`` where nobody names one."""
        name = self.profile or plan.exit_profile or plan.recorded.get("profile")
        if name is None:
            raise UserError(
                f"the policy does not say how its model was asked: set {PROFILE} to a profile"
            )
        return find_profile(str(name))

    def bind(
        self, tokenizer: Any, engine: Engine, size: int, eos: Sequence[int]
    ) -> dict[str, Core]:
        """The plans in an engine with ``size`` logits; raises as ``decoding.core.bind`` does."""
        return {
            name: bind(plan, tokenizer, engine, vocabulary_size=size, eos_ids=eos,
                       profile=self.profile, token_price=self.token_price)
            for name, plan in self.plans.items()
        }  # fmt: skip

    def reserve(self, name: str) -> int:
        """Tokens that exit text and answer may take, in any tokenizer.

        The process that refuses requests has no tokenizer; none spells a text in more tokens than
        it has bytes, one more for a leading space.
        """
        plan = self.plans[name]
        if plan.answer_reserve is not None:
            return plan.answer_reserve
        profile = self.profile_of(plan)
        return profile.max_answer_tokens + len(profile.exit_text.encode()) + 1


def identity(settings: Settings, name: str) -> str:
    """What tells whether two processes decide alike under the plan ``name``: a digest of its
    policies, of what stands over them, and of how it exits; the dial is each request's own."""
    plan = settings.plans[name]
    strategy = "" if plan.plain else plan.digest
    parts = (plan.fingerprint, strategy, settings.profile_of(plan).name, plan.stride,
             plan.max_thinking_tokens, plan.answer_reserve, plan.loops)  # fmt: skip
    return sha256(repr(parts).encode()).hexdigest()[:16]


def settings_of(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings in the environment; plans and policies are loaded once a process.

    ``RLBUDGET_PLAN`` is a plan, ``RLBUDGET_POLICY`` a policy folder, or each of them several as
    ``name=path,name=path``. Raises ``UserError`` for one that is missing or damaged, an unknown
    profile and a wrong price.
    """
    return _settings(*(environment.get(n, "") for n in (PLAN, POLICY, PROFILE, TOKEN_PRICE)))


def settings_for(
    given: Mapping[str, Plan | StopPolicy], profile: str | None = None, price: float | None = None
) -> Settings:
    """The settings around these plans or policies; raises as ``settings_of`` does."""
    plans = {name: plan_of(one) for name, one in given.items()}
    served: dict[str, Any] = {name: plan.compose() or plan.policy for name, plan in plans.items()}
    if price is not None:
        for name, policy in served.items():
            check_price(price, policy.price_range, name=f"{TOKEN_PRICE} for the policy {name!r}")
    settings = Settings(plans, served, profile, price)
    for plan in plans.values():
        settings.profile_of(plan)
    return settings


@cache
def _settings(plan: str, policy: str, profile: str, token_price: str) -> Settings:
    if not plan.strip() and not policy.strip():
        raise UserError(
            f"set {POLICY} to a policy folder, or to name=folder,name=folder, or {PLAN} to a plan"
        )
    found: dict[str, Plan | StopPolicy] = {}
    sources: list[tuple[str, str, Callable[[str], Plan | StopPolicy]]] = [
        (PLAN, plan, load_plan), (POLICY, policy, load_policy)
    ]  # fmt: skip
    for variable, value, load in sources:
        for part in filter(None, (part.strip() for part in value.split(","))):
            name, equals, path = part.partition("=")
            name, path = (name, path) if equals else ("default", name)
            if not name or not path or name in found:
                raise UserError(f"{variable}: {part!r} is not name=path with a name of its own")
            found[name] = load(path)
    price = None
    if token_price.strip():
        try:
            price = float(token_price)
        except ValueError:
            raise UserError(f"{TOKEN_PRICE}: {token_price!r} is not a number") from None
    return settings_for(found, profile.strip() or None, price)


def wish_of(given: Mapping[str, Any], settings: Settings, prefix: str = "") -> Wanted:
    """What a request asks for; ``prefix`` stands before its names.

    Raises ``UserError`` for values of the wrong kind, an unknown plan, and a price, effort or loss
    that it does not serve.
    """
    said = {name: _read(prefix, name, given[prefix + name])
            for name in _KINDS if given.get(prefix + name) not in (None, "")}  # fmt: skip
    name = said.pop("policy", next(iter(settings.plans)))
    if name not in settings.plans:
        raise UserError(
            f"{prefix}policy: no policy {name!r} here; there are: {', '.join(settings.plans)}"
        )
    asked = said.pop("fingerprint", None)
    if asked is not None and asked != (own := identity(settings, name)):
        raise UserError(f"{prefix}fingerprint: the plan {name!r} here is {own}, not {asked}")
    plan = settings.plans[name]
    dial = Dial(**{key: said.pop(key) for key in DIALS if key in said})
    plan.spot(dial)
    if dial.token_price is not None:
        check_price(
            dial.token_price, settings.served[name].price_range, name=f"{prefix}token_price"
        )
    return Wanted(name, dial, said.pop("off", False), said.pop("thinking_budget", None), said)


def xargs_of(params: Any) -> dict[str, Any]:
    """What vLLM's ``SamplingParams`` hold for this adapter; ``UserError`` for an unknown name."""
    given = {n: v for n, v in (params.extra_args or {}).items() if str(n).startswith(PREFIX)}
    for name in given:
        if name.removeprefix(PREFIX) not in _KINDS:
            there = ", ".join(PREFIX + known for known in _KINDS)
            raise UserError(f"no argument {name!r}; there are: {there}")
    return given


def check_room(wish: Wanted, settings: Settings, max_tokens: int | None) -> None:
    """``UserError`` for a ``max_tokens`` that cannot hold an answer."""
    needed = settings.reserve(wish.name)
    if not wish.off and max_tokens is not None and max_tokens <= needed:
        raise UserError(
            f"max_tokens {max_tokens} leaves no room to think: the exit text and the answer may"
            f" take {needed} of them; ask for more, or send {PREFIX}off"
        )


def _read(prefix: str, name: str, value: Any) -> Any:
    """A value of the right kind; ``UserError`` for another."""
    kind = _KINDS[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "a number" and number:
        return float(value)
    if name == "off" and isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    if name == "thinking_budget" and number and value == value // 1 >= 1:
        return int(value)
    if name == "metadata":
        value = _object(value)
        if isinstance(value, Mapping):
            return value
    if kind == "a text" and isinstance(value, str) and value.strip():
        whole = value == value.encode(errors="ignore").decode()  # no half of a character
        if whole and (value.isprintable() or name == "question"):
            return value
    raise UserError(f"{prefix}{name} must be {kind}, not {value!r}")


def _object(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
