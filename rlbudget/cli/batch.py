"""A file of questions under one budget of tokens: ``rlbudget decode --file``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from rlbudget.decoding.decoded import Decoded
from rlbudget.errors import UserError
from rlbudget.policy.dial import Dial
from rlbudget.policy.prices import PriceRange
from rlbudget.strategies.allocation import (
    Batch,
    Curve,
    after_spending,
    next_price,
    unknown_curve,
)

_MOST = 1_000_000
"""questions of a file"""


@dataclass(frozen=True, slots=True)
class Asked:
    """One line of the file."""

    question: str
    id: str | None = None
    exempt: bool = False
    """whether it is served as the plan says and its tokens are not of the budget"""
    task: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_questions(path: Path) -> list[Asked]:
    """Lines of JSON: ``question``, and ``id``, ``exempt``, ``task``, ``metadata`` where wanted.

    Raises ``UserError``, ``FILE:LINE: what is wrong``.
    """
    found = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                found.append(_asked(path, number, line))
                if len(found) > _MOST:
                    raise UserError(f"{path}: more than {_MOST:,} questions")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not found:
        raise UserError(f"{path} holds no question")
    return found


def _asked(path: Path, number: int, line: bytes) -> Asked:
    try:
        row = msgspec.json.decode(line, type=dict[str, Any])
        if unknown := sorted(set(row) - set(Asked.__slots__)):
            there = ", ".join(Asked.__slots__)
            raise UserError(f"{path}:{number}: {unknown[0]!r}: unknown; there are {there}")
        asked = msgspec.convert(row, Asked)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}:{number}: {error}") from None
    if not asked.question.strip():
        raise UserError(f"{path}:{number}: an empty question")
    return asked


@dataclass(frozen=True, slots=True)
class Spent:
    """One question of a batch, answered."""

    asked: Asked
    decoded: Decoded
    token_price: float | None
    """None where the plan's own held"""
    batch: Batch
    """after it"""


def answered(
    questions: Sequence[Asked], budget: float, known: PriceRange, curve: Curve | None,
    ask: Callable[[Asked, Dial], Decoded],
) -> Iterator[Spent]:  # fmt: skip
    """Answer them in turn, each at the price at which the rest is predicted to meet the budget.

    ``curve`` is what a price spends, None where nothing was recorded: then it is learned from the
    first ones. Raises ``UserError`` for a budget of nothing.
    """
    counted = sum(not one.exempt for one in questions)
    if budget < 1:
        raise UserError("the token budget must be at least 1")
    batch = Batch(float(budget), counted)
    known_curve = unknown_curve(known, budget / max(counted, 1)) if curve is None else curve
    for one in questions:
        if one.exempt:
            yield Spent(one, ask(one, Dial()), None, batch)
            continue
        price = next_price(batch, known_curve, known)
        decoded = ask(one, Dial(token_price=price))
        batch = after_spending(batch, known_curve, price, decoded.total_tokens)
        yield Spent(one, decoded, price, batch)


def row_of(spent: Spent) -> dict[str, Any]:
    """A line of the output, JSON-ready."""
    decoded, asked = spent.decoded, spent.asked
    row: dict[str, Any] = {} if asked.id is None else {"id": asked.id}
    return row | {
        "answer": decoded.answer, "tokens": decoded.total_tokens, "reason": decoded.reason,
        "thinking_tokens": decoded.thinking_tokens, "token_price": spent.token_price,
        "exempt": asked.exempt, "spent": spent.batch.spent, "budget": spent.batch.budget,
    }  # fmt: skip
