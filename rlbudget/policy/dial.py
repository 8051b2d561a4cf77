"""The dial: where on the trade-off between tokens and answers a request is served.

A policy is served at a token price; users think in effort, in points of exact match or in money.
``Dial`` holds what they said, ``Dial.at`` is the one place where that becomes a token price.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from rlbudget.errors import UserError
from rlbudget.policy.prices import middle_price, nearest_price
from rlbudget.policy.stop_policy import StopPolicy

EFFORTS: Mapping[str, float] = {
    "max": 0.0, "high": 0.005, "medium": 0.01, "low": 0.03, "minimal": 0.06,
}  # fmt: skip
"""effort -> exact match that it may lose; ``policy.operating`` finds the prices"""
NO_EFFORT = "none"
"""the effort that exits at once, which needs no operating point"""
EFFORT_NAMES = (NO_EFFORT, *list(EFFORTS)[::-1])


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a request is served."""

    token_price: float
    """reward lost per token, in the range of the policy unless it was named itself"""
    stops: Literal["policy", "never", "at once"] = "policy"
    """who ends the thinking: the policy; nobody but the model and the cap; the exit, before the
    first thought"""
    max_em_loss: float | None = None
    """the certified loss that was asked for; None for that of the policy's own certificate"""


@dataclass(frozen=True, slots=True)
class Dial:
    """What a plan, a command or a request says about the trade-off: at most one way of saying it.

    Raises ``UserError`` for two ways at once, half of the money, an unknown effort and numbers out
    of range.
    """

    token_price: float | None = None
    """reward lost per token"""
    effort: str | None = None
    """an operating point of the policy folder: none, minimal, low, medium, high, max"""
    max_em_loss: float | None = None
    """exact match that may be lost, in [0, 1]; a certificate of the policy must cover it"""
    answer_worth: float | None = None
    """what a right answer is worth, in money"""
    price_per_million: float | None = None
    """money for a million tokens, in the currency of ``answer_worth``"""

    def __post_init__(self) -> None:
        said = [self.token_price, self.effort, self.max_em_loss, self.answer_worth]
        if sum(each is not None for each in said) > 1:
            raise UserError(
                "say one of: a token price, an effort, a loss of exact match, what an answer is"
                " worth"
            )
        if (self.answer_worth is None) != (self.price_per_million is None):
            raise UserError("what an answer is worth and the price of a million tokens go together")
        if self.effort is not None and self.effort not in EFFORT_NAMES:
            raise UserError(f"effort {self.effort!r}: it is one of {', '.join(EFFORT_NAMES)}")
        for name in ("token_price", "max_em_loss", "answer_worth", "price_per_million"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name.replace('_', ' ')} must be at least 0, not {value:g}")
        if self.max_em_loss is not None and self.max_em_loss > 1:
            raise UserError(
                f"max em loss must be a share, 0.01 for a point, not {self.max_em_loss:g}"
            )

    @property
    def silent(self) -> bool:
        """Whether nothing is said."""
        said = (self.token_price, self.effort, self.max_em_loss, self.answer_worth)
        return said == (None, None, None, None) and self.price_per_million is None

    def price(self, policy: StopPolicy) -> float:
        """Reward lost per token at which ``policy`` is served; raises as ``at``."""
        return self.at(policy).token_price

    def at(self, policy: StopPolicy) -> Spot:
        """Where ``policy`` is served; at its default price where nothing is said.

        What money comes to is served at the nearest price that the policy knows; a token price is
        left as it was said. Raises ``UserError`` for an effort of which the policy folder has no
        operating point and a loss that no certificate covers.
        """
        known = policy.price_range
        default = float(getattr(policy, "default_price", middle_price(known)))
        if self.token_price is not None:
            return Spot(self.token_price)
        if self.answer_worth is not None and self.price_per_million is not None:
            if not self.answer_worth:
                raise UserError("an answer that is worth nothing needs no model")
            return Spot(nearest_price(self.price_per_million / 1e6 / self.answer_worth, known))
        if self.effort == NO_EFFORT:
            return Spot(known[1] if math.isfinite(known[1]) else default, "at once")
        if self.effort is not None:
            price = _price_of(self.effort, policy)
            if not price:
                return Spot(known[0], "never")
            certified = getattr(policy, "operating_points", {})[self.effort].get("certified")
            return Spot(price, max_em_loss=EFFORTS[self.effort] if certified else None)
        if self.max_em_loss is not None:
            return Spot(_certified_price(self.max_em_loss, policy), max_em_loss=self.max_em_loss)
        return Spot(default)


DIALS = tuple(field.name for field in fields(Dial))
"""What plans and requests call what they say."""


def certificates(calibration: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The certified losses of a policy folder with their prices, the tightest first."""
    if not calibration:
        return []
    found: list[Mapping[str, Any]] = calibration.get("certified") or [calibration]
    return sorted(found, key=lambda one: float(one["max_em_loss"]))


def beyond(policy: Any, token_price: float, max_em_loss: float | None = None) -> str | None:
    """What a certified policy no longer promises at a token price, in a line.

    ``max_em_loss`` is the loss that was asked for; None for that of the certificate. None where the
    certificate covers the price and where there is none.
    """
    config = getattr(policy, "config", None)
    calibration = config.get("calibration") if isinstance(config, Mapping) else None
    if not calibration:
        return None
    loss = float(calibration["max_em_loss"]) if max_em_loss is None else max_em_loss
    prices = {float(c["max_em_loss"]): float(c["token_price"]) for c in certificates(calibration)}
    bound = max((price for own, price in prices.items() if own <= loss + 1e-12), default=0.0)
    if token_price <= bound * (1 + 1e-9):
        return None
    looser = [own for own, price in prices.items() if token_price <= price * (1 + 1e-9)]
    at_most = f"up to which an exact match loss of {loss:g} is certified"
    what = f"a loss of {min(looser):g} is certified there" if looser else (
        "the bound on lost answers does not cover it"
    )  # fmt: skip
    return f"token price {token_price:.3g} is above {bound:.3g}, {at_most}: {what}"


def uncovered(policy: Any, token_price: float, max_em_loss: float | None = None) -> str | None:
    """``beyond``, of a policy or of what stands over policies and moves the price.

    A strategy says by ``asks(token_price)`` which policies it asks at what prices; the first that
    is asked beyond its certificate is named.
    """
    asks = getattr(policy, "asks", None)
    if asks is None:
        return beyond(policy, token_price, max_em_loss)
    found = (uncovered(one, price, max_em_loss) for one, price in asks(token_price))
    return next((line for line in found if line is not None), None)


def _price_of(effort: str, policy: StopPolicy) -> float:
    points: Mapping[str, Any] = getattr(policy, "operating_points", None) or {}
    if effort not in points:
        raise UserError(
            "this policy has no operating points, which an effort names: freeze its run again"
            " (rlbudget freeze), or say a token price"
        )
    return float(points[effort]["token_price"])


def _certified_price(loss: float, policy: StopPolicy) -> float:
    """That of the largest certified loss that is not above this one."""
    found = certificates(getattr(policy, "config", {}).get("calibration"))
    covering = [one for one in found if float(one["max_em_loss"]) <= loss + 1e-12]
    if not covering:
        has = f"; the smallest certified loss is {found[0]['max_em_loss']:g}" if found else ""
        raise UserError(
            f"no certificate covers an exact match loss of {loss:g}{has}: make one with rlbudget"
            " calibrate"
        )
    return float(covering[-1]["token_price"])
