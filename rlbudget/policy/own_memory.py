"""Features with a memory of their own, which frozen rules are made of.

Their names say numbers behind ``@``, without a dot: ``entropy_mean.surplus@35e-2`` is the transform
``surplus`` of ``entropy_mean`` with 0.35. Beside the transforms of ``policy.observation`` there are

============  =================================================================================
surplus@d     CUSUM: sum of ``d`` minus the value, never below 0 (the rule entropy)
group@w       minus the mean over the last ``w`` tokens, 0 until there are so many (deepconf)
settling      log2 of the moving variance, in bits², 16 before it counts (eat)
below@b       checkpoints in a row where the value, in bits, is below ``b`` (halt)
again         tokens in a row where the value is 1 (loop)
unhedged@k    equal trial answers in a row that do not doubt themselves, of those at each ``k``-th
              checkpoint (dynasor)
first@n       the value at the first ``n`` checkpoints where it is above 0, else 0 (deer)
each@n        whether ``n`` divides the value (esc)
============  =================================================================================

They see a missing value as missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Protocol

import numpy as np

from rlbudget.arrays import Bools, Floats, Ints

_NUMBER = re.compile(r"-?\d{1,20}(e-?\d{1,3})?")
_UNSETTLED = 16.0
"""log2 of a variance that is not known: above any of an entropy"""
_SETTLED = -60.0
_ALPHA = 0.2
"""of the moving mean and variance of the rule eat (arXiv 2509.26522)"""


def with_number(name: str, *numbers: float) -> str:
    """The name of a transform with its numbers: ``("surplus", 0.35)`` -> ``surplus@35e-2``."""
    return "@".join([name, *map(_spelled, numbers)])


def _spelled(number: float) -> str:
    whole = int(number) if float(number).is_integer() else None
    if whole is not None and abs(whole) < 10**15:
        return str(whole)
    sign, digits, exponent = Decimal(repr(float(number))).as_tuple()
    return f"{'-' if sign else ''}{''.join(map(str, digits))}e{exponent}"


@lru_cache(maxsize=4096)
def split_name(feature: str) -> tuple[str, str, tuple[float, ...]]:
    """Signal, transform and numbers of a feature. ``ValueError`` for what is no number."""
    signal, _, rest = feature.partition(".")
    name, *numbers = rest.split("@")
    wrong = next((number for number in numbers if not _NUMBER.fullmatch(number)), None)
    if wrong is not None:
        raise ValueError(f"feature {feature!r}: {wrong!r} is not a number")
    return signal, name, tuple(map(float, numbers))


@dataclass(frozen=True, slots=True)
class Seen:
    """What a checkpoint of ``r`` decodes shows beside a signal."""

    rows: Ints
    """(r,) which decodes"""
    tokens: Floats
    """(r,) thinking so far"""
    nth: Floats
    """(r,) the number of the checkpoint, from 1"""
    answer: Ints | None
    """(r,) the code of the trial answer"""
    hedged: Bools | None
    """(r,) whether it doubts itself"""


class OwnMemory(Protocol):
    """One feature of ``n`` decodes."""

    def __call__(self, x: Floats, seen: Seen, /) -> Floats:
        """(r,) values of the signal, NaN where missing -> (r,) the feature."""


class _Surplus:
    def __init__(self, n: int, drift: float) -> None:
        self._held, self._drift = np.zeros(n), drift

    def __call__(self, x: Floats, seen: Seen, /) -> Floats:
        value = np.where(np.isnan(x), np.inf, x)
        held: Floats = np.maximum(0.0, self._held[seen.rows] + self._drift - value)
        self._held[seen.rows] = held
        return held


class _Group:
    """Running sums of the value and of its tokens, and where each checkpoint's tokens begin."""

    def __init__(self, n: int, window: float) -> None:
        self._window = window
        self._sums = [[0.0] for _ in range(n)]
        self._weights = [[0.0] for _ in range(n)]
        self._before = [[0.0] for _ in range(n)]
        self._first = [0] * n

    def __call__(self, x: Floats, seen: Seen, /) -> Floats:
        return np.array([
            self._one(row, value, tokens)
            for row, value, tokens in zip(
                seen.rows.tolist(), x.tolist(), seen.tokens.tolist(), strict=True
            )
        ])  # fmt: skip

    def _one(self, row: int, value: float, tokens: float) -> float:
        sums, weights, before = self._sums[row], self._weights[row], self._before[row]
        weight = 0.0 if math.isnan(value) else tokens - before[-1]
        sums.append(sums[-1] - (value * weight if weight > 0 else 0.0))
        weights.append(weights[-1] + weight)
        first = self._first[row]
        while first < len(before) and before[first] < tokens - self._window:
            first += 1
        self._first[row] = first  # behind the last where the window is shorter than a stride
        before.append(tokens)
        inside = weights[-1] - weights[first]
        if tokens < self._window or inside <= 0:
            return 0.0
        return (sums[-1] - sums[first]) / inside


class _Settling:
    def __init__(self, n: int) -> None:
        self._mean, self._variance = np.zeros(n), np.zeros(n)
        self._known = np.zeros(n, dtype=np.int64)

    def __call__(self, x: Floats, seen: Seen, /) -> Floats:
        out = np.full(len(x), _UNSETTLED)
        there = ~np.isnan(x)
        rows, bits = seen.rows[there], x[there] / np.log(2)
        first = self._known[rows] == 0
        mean = np.where(first, bits, _ALPHA * bits + (1 - _ALPHA) * self._mean[rows])
        moved = _ALPHA * (bits - mean) ** 2 + (1 - _ALPHA) * self._variance[rows]
        self._mean[rows], self._variance[rows] = mean, np.where(first, 0.0, moved)
        late = self._known[rows] >= np.ceil(4 / _ALPHA)
        least = np.maximum(self._variance[rows], 2.0**_SETTLED)
        out[there] = np.where(late, np.log2(least), _UNSETTLED)
        self._known[rows] += 1
        return out


class _Below:
    def __init__(self, n: int, bits: float) -> None:
        self._run, self._bits = np.zeros(n), bits

    def __call__(self, x: Floats, seen: Seen, /) -> Floats:
        run: Floats = np.where(x / np.log(2) < self._bits, self._run[seen.rows] + 1, 0.0)
        self._run[seen.rows] = run
        return run


class _Again:
    def __init__(self, n: int) -> None:
        self._new = np.zeros(n)  # tokens where something new was said last

    def __call__(self, x: Floats, seen: Seen, /) -> Floats:
        again = x >= 1
        self._new[seen.rows] = np.where(again, self._new[seen.rows], seen.tokens)
        since: Floats = seen.tokens - self._new[seen.rows]
        return since


class _Unhedged:
    def __init__(self, n: int, every: float) -> None:
        self._streak, self._every = np.zeros(n), every
        self._answer = np.full(n, -1, dtype=np.int64)

    def __call__(self, x: Floats, seen: Seen, /) -> Floats:
        due = seen.nth % self._every == 0
        if due.any():
            if seen.answer is None or seen.hedged is None:
                raise ValueError(
                    f"these features need a trial answer at each {self._every:g}. checkpoint"
                )
            rows, answer, hedged = seen.rows[due], seen.answer[due], seen.hedged[due]
            again = (answer == self._answer[rows]) & ~hedged
            self._streak[rows] = np.where(again, self._streak[rows] + 1, ~hedged)
            self._answer[rows] = answer
        return self._streak[seen.rows]


class _First:
    def __init__(self, n: int, most: float) -> None:
        self._count, self._most = np.zeros(n), most

    def __call__(self, x: Floats, seen: Seen, /) -> Floats:
        self._count[seen.rows] += x > 0
        shown: Floats = np.where((x > 0) & (self._count[seen.rows] <= self._most), x, 0.0)
        return shown


class _Each:
    def __init__(self, n: int, every: float) -> None:
        self._every = every

    def __call__(self, x: Floats, seen: Seen, /) -> Floats:
        whole: Floats = np.where(x % self._every == 0, 1.0, 0.0)
        return whole


OWN: Mapping[str, tuple[Callable[..., OwnMemory], int]] = {
    "surplus": (_Surplus, 1),
    "group": (_Group, 1),
    "settling": (_Settling, 0),
    "below": (_Below, 1),
    "again": (_Again, 0),
    "unhedged": (_Unhedged, 1),
    "first": (_First, 1),
    "each": (_Each, 1),
}
"""Transform -> what makes it for ``n`` decodes, and how many numbers its name says."""


def is_own(feature: str) -> bool:
    """Whether a feature has a memory of its own; ``ValueError`` where it lacks its number."""
    _, name, numbers = split_name(feature)
    if name not in OWN:
        return False
    if len(numbers) != OWN[name][1] or not all(number > 0 for number in numbers):
        wanted = f"{OWN[name][1]} above 0" if OWN[name][1] else "none"
        raise ValueError(f"feature {feature!r}: numbers behind @: {wanted}")
    return True


def own_memories(features: Sequence[str], n: int) -> list[tuple[int, str, OwnMemory]]:
    """Column, signal and memory of each of the features that has one, fresh."""
    found = []
    for column, feature in enumerate(features):
        if is_own(feature):
            signal, name, numbers = split_name(feature)
            found.append((column, signal, OWN[name][0](n, *numbers)))
    return found
