"""The numbers that the report begins with, each with what it says, of an ``evaluation.json``.

They are of one way of serving, the one that is recommended. An arrow leads from the full decode to
it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Tile = tuple[str, str]
"""a number and what it says"""
NO_BREAK = "\u00a0"


def tiles(evaluation: Mapping[str, Any]) -> list[Tile]:
    """Tokens and exact match, money and time where rates were given, the gap closed."""
    headline, full = evaluation["headline"], evaluation["full"]
    tokens = counted(full["tokens"]["total"])
    if headline["method"] == "full":
        return [
            (percent(full["exact_match"]), "exact match of the full decode"),
            (tokens, "tokens of the full decode"),
            *rated(evaluation),
        ]
    savings, change = headline["savings"], headline["exact_match_change"]
    sign = -1 if savings < 0 else 1
    before, after = (percent(full["exact_match"] + part) for part in (0.0, change))
    saved = between(headline["savings_ci95"], lambda end: percent(sign * end, 0))
    changed = between(headline["exact_match_change_ci95"], points)
    found = [
        (percent(abs(savings), 0), f"{'more' if sign < 0 else 'fewer'} tokens with"
         f" {headline['how']}: {tokens} → {counted(headline['tokens'])} a question{saved}"),
        (f"{points(change)}{NO_BREAK}pt", f"exact match: {before} → {after}{changed}"),
        *rated(evaluation),
    ]  # fmt: skip
    row = next(r for r in evaluation["summary"] if r["method"] == headline["method"])
    if row["mean_oracle_gap_closed"] is not None:
        ends = between(row["mean_oracle_gap_closed_ci95"], share)
        found.append((share(row["mean_oracle_gap_closed"]),
                      "of the way from the best constant budget to the oracle, by"
                      f" {headline['method']}, mean over all prices{ends}"))  # fmt: skip
    return found


def rated(evaluation: Mapping[str, Any]) -> list[Tile]:
    """Those that need a rate: money and time; none where it was not given."""
    nothing = evaluation.get("headline", {}).get("method") == "full"
    found = []
    if paid := evaluation.get("money"):

        def said(amount: float) -> str:
            return money(amount, paid["currency"])

        full, saved = paid["full"], paid["saved"]
        more = "more" if saved < 0 else "less"
        asked = f"to pay for {paid['questions']:,} questions"
        found.append(
            (said(full), f"{asked} decoded in full; nothing is saved")
            if nothing
            else (said(abs(saved)), f"{more} {asked}: {said(full)} → {said(full - saved)}"
                  + between(paid["saved_ci95"], said))
        )  # fmt: skip
    if time := evaluation.get("time"):
        median, p95 = (
            (seconds(time["full"][part]), seconds(time["served"][part]))
            for part in ("median", "p95")
        )
        sooner = "later" if time["saved"] < 0 else "sooner"
        found.append(
            (median[0], f"an answer in full, median; 95% take at most {p95[0]}; nothing is saved")
            if nothing
            else (seconds(abs(time["saved"])), f"{sooner} with an answer, in the mean"
                  f"{between(time['saved_ci95'], seconds)}; median {median[0]} → {median[1]},"
                  f" 95th percentile {p95[0]} → {p95[1]}")
        )  # fmt: skip
    return found


def between(ends: Sequence[float | None], show: Callable[[float], str]) -> str:
    """An interval in brackets, lower end first; nothing where there is none."""
    low, high = ends
    if low is None or high is None:
        return ""
    first, last = (show(end) for end in (low, high))
    return f" (95%: {first} to {last})"


def counted(tokens: float) -> str:
    """A mean of tokens."""
    return f"{tokens:,.1f}" if tokens < 1000 else f"{tokens:,.0f}"


def percent(value: float, digits: int = 1) -> str:
    """Of a share."""
    return _minus(f"{round(100 * value, digits) + 0.0:.{digits}f}%")


def points(value: float) -> str:
    """Of a share of exact match, with its sign."""
    rounded = round(100 * value, 1) + 0.0
    return _minus(f"{rounded:+.1f}" if rounded else "0.0")


def share(value: float) -> str:
    """To two digits."""
    return _minus(f"{round(value, 2) + 0.0:.2f}")


def money(amount: float, currency: str) -> str:
    """To the hundredth, below a unit to two digits that count; letters behind the number."""
    size = abs(amount)
    digits = 2 if size >= 1 or not size else min(8, 1 - math.floor(math.log10(size)))
    number = f"{size:,.{digits}f}"
    letters = len(currency) > 1 and currency.isalpha()
    shown = f"{number}{NO_BREAK}{currency}" if letters else f"{currency}{number}"
    return f"−{shown}" if amount < 0 else shown


def seconds(value: float) -> str:
    """In seconds, from two minutes on in minutes."""
    size = abs(value)
    if size >= 120:
        return _minus(f"{value / 60:,.1f}{NO_BREAK}min")
    digits = 3 if size < 0.095 else 2 if size < 9.95 else 1
    return _minus(f"{round(value, digits) + 0.0:.{digits}f}{NO_BREAK}s")


def _minus(text: str) -> str:
    return text.replace("-", "−")
