"""The dial: where on the trade-off between tokens and answers a request is served.

A policy is served at a token price; users think in effort, in points of exact match or in money.
``Dial`` holds what they said, ``Dial.price`` is the one place where that becomes a token price.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlbudget.errors import UserError
from rlbudget.policy.prices import middle_price
from rlbudget.policy.stop_policy import StopPolicy


@dataclass(frozen=True, slots=True)
class Dial:
    """What a plan, a command or a request says about the trade-off: at most one way of saying it.

    Raises ``UserError`` for two ways at once, half of the money and numbers out of range.
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
        for name in ("token_price", "max_em_loss", "answer_worth", "price_per_million"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name.replace('_', ' ')} must be at least 0, not {value:g}")

    @property
    def silent(self) -> bool:
        """Whether nothing is said."""
        return self == Dial()

    def price(self, policy: StopPolicy) -> float:
        """Reward lost per token at which ``policy`` is served; its default where nothing is said.

        Raises ``UserError`` for an effort that the policy folder does not name, a loss that no
        certificate covers, and a price out of its range.
        """
        if self.token_price is not None:
            return self.token_price
        if self.answer_worth is not None and self.price_per_million is not None:
            if not self.answer_worth:
                raise UserError("an answer that is worth nothing needs no model")
            return self.price_per_million / 1e6 / self.answer_worth
        if self.effort is not None or self.max_em_loss is not None:
            raise UserError("this policy folder names no operating points")
        return float(getattr(policy, "default_price", middle_price(policy.price_range)))
