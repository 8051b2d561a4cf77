"""What an operator says to the vLLM adapter at start-up, and a client with a request."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from rlbudget.errors import UserError
from rlbudget.models.profiles import Profile, find_profile
from rlbudget.policy.folder import Policy, load_policy
from rlbudget.policy.prices import check_price

POLICY, PROFILE, TOKEN_PRICE = "RLBUDGET_POLICY", "RLBUDGET_PROFILE", "RLBUDGET_TOKEN_PRICE"
"""The environment variables that are read at start-up."""

PREFIX = "rlbudget_"
XARGS = ("rlbudget_token_price", "rlbudget_policy", "rlbudget_off")
"""What a request may say, in ``vllm_xargs`` or ``SamplingParams.extra_args``."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for every request."""

    policies: Mapping[str, Policy]
    """by the name that requests know it by; the first is for those that name none"""
    profile: str | None
    """None: that of each policy's traces"""
    token_price: float | None
    """None: each policy's own default"""

    def profile_of(self, policy: Policy) -> Profile:
        """The exit profile; ``UserError`` where neither the operator nor the policy names one."""
        name = self.profile or policy.recorded.get("profile")
        if name is None:
            raise UserError(
                f"the policy does not say how its model was asked: set {PROFILE} to a profile"
            )
        return find_profile(str(name))


@dataclass(frozen=True, slots=True)
class Wish:
    """What one request asks for."""

    policy: str
    """a name among ``Settings.policies``"""
    token_price: float | None
    """None: the operator's"""


def settings_of(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings in the environment; policies are loaded once a process.

    ``RLBUDGET_POLICY`` is a policy folder, or several as ``name=folder,name=folder``. Raises
    ``UserError`` for one that is missing or damaged, an unknown profile and a wrong price.
    """
    return _settings(*(environment.get(name, "") for name in (POLICY, PROFILE, TOKEN_PRICE)))


@cache
def _settings(policy: str, profile: str, token_price: str) -> Settings:
    if not policy.strip():
        raise UserError(f"set {POLICY} to a policy folder, or to name=folder,name=folder")
    policies: dict[str, Policy] = {}
    for part in policy.split(","):
        name, equals, folder = part.strip().partition("=")
        name, folder = (name, folder) if equals else ("default", name)
        if not name or not folder or name in policies:
            raise UserError(f"{POLICY}: {part.strip()!r} is not name=folder with a name of its own")
        policies[name] = load_policy(folder)
    price = None
    if token_price.strip():
        try:
            price = float(token_price)
        except ValueError:
            raise UserError(f"{TOKEN_PRICE}: {token_price!r} is not a number") from None
        for name, known in policies.items():
            what = f"{TOKEN_PRICE} for the policy {name!r}"
            check_price(price, known.price_range, name=what)
    settings = Settings(policies, profile.strip() or None, price)
    for known in policies.values():
        settings.profile_of(known)
    return settings


def wish_of(params: Any, settings: Settings) -> Wish | None:
    """What a request's ``SamplingParams`` ask for; None if they want no adapter.

    Raises ``UserError`` for names it does not know, values of the wrong kind and a
    ``max_tokens`` that cannot hold an answer.
    """
    given = {
        name: value
        for name, value in (params.extra_args or {}).items()
        if str(name).startswith(PREFIX)
    }
    unknown = sorted(set(given) - set(XARGS))
    if unknown:
        raise UserError(f"no argument {unknown[0]!r}; there are: {', '.join(XARGS)}")
    off = given.get("rlbudget_off", False)
    if not isinstance(off, bool | int | float) or off not in (0, 1):
        raise UserError(f"rlbudget_off must be true or false, not {off!r}")
    name = given.get("rlbudget_policy", next(iter(settings.policies)))
    if not isinstance(name, str) or name not in settings.policies:
        raise UserError(
            f"rlbudget_policy: no policy {name!r} here; there are: {', '.join(settings.policies)}"
        )
    policy, price = settings.policies[name], given.get("rlbudget_token_price")
    if price is not None:
        if isinstance(price, bool) or not isinstance(price, int | float):
            raise UserError(f"rlbudget_token_price must be a number, not {price!r}")
        price = float(price)
        check_price(price, policy.price_range, name="rlbudget_token_price")
    if off:
        return None
    needed = longest_reserve(settings.profile_of(policy))
    if params.max_tokens is not None and params.max_tokens <= needed:
        raise UserError(
            f"max_tokens {params.max_tokens} leaves no room to think: the exit text and the answer"
            f" may take {needed} of them; ask for more, or send rlbudget_off"
        )
    return Wish(name, price)


def longest_reserve(profile: Profile) -> int:
    """Tokens that the exit text and the answer take in any tokenizer.

    The process that refuses requests has no tokenizer; none spells a text in more tokens than it
    has bytes, one more for a leading space.
    """
    return profile.max_answer_tokens + len(profile.exit_text.encode()) + 1
