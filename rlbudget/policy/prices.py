"""Token prices and the range of them that a policy was trained on, ``(lowest, highest)``.

A price is reward lost per token. Inside its range a policy is told the price as it is; what is
outside is either refused (``check_price``) or told as the nearest price (``nearest_price``).
"""

from __future__ import annotations

import numpy as np

from rlbudget.errors import UserError
from rlbudget.policy.network import in_range

PriceRange = tuple[float, float]

__all__ = [
    "PriceRange",
    "check_price",
    "check_price_range",
    "in_range",
    "middle_price",
    "nearest_price",
    "price_grid",
]


def check_price(
    token_price: float,
    price_range: PriceRange,
    *,
    name: str = "token price",
    server: str = "this policy",
) -> None:
    """``UserError`` for a price outside the range; ``name`` and ``server`` stand in its message."""
    if not in_range(token_price, price_range):
        low, high = price_range
        raise UserError(f"{name} {token_price:g}: {server} serves prices from {low:g} to {high:g}")


def check_price_range(price_range: PriceRange, *, may_be_one: bool = False) -> PriceRange:
    """The range as floats; ``UserError`` unless 0 < lowest < highest < infinity.

    With ``may_be_one`` lowest and highest may be equal.
    """
    low, high = (float(price) for price in price_range)
    if not 0 < low <= high < np.inf or (low == high and not may_be_one):
        raise UserError(
            f"token price range {low:g} to {high:g}: it needs 0 < lowest"
            f" {'<=' if may_be_one else '<'} highest, in reward per token"
        )
    return low, high


def nearest_price(token_price: float, price_range: PriceRange) -> float:
    """The price of the range that is nearest to this one."""
    return min(max(token_price, price_range[0]), price_range[1])


def middle_price(price_range: PriceRange) -> float:
    """The geometric mean of the two ends; the lower end where there is none."""
    low, high = price_range
    if low <= 0 or high == np.inf:
        return float(low)
    return float((low * high) ** 0.5)


def price_grid(price_range: PriceRange, n: int) -> list[float]:
    """``n`` prices over the range, evenly spaced in their logarithm, its ends exactly."""
    grid: list[float] = np.geomspace(*price_range, n).clip(*price_range).tolist()
    return grid
