"""How each family's questions are worked out: a quick way and several careful ones."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import gcd

from reasoning_gym.arithmetic.leg_counting import ANIMALS

from rlbudget.tasks.reasoning_gym import Item


class Pen:
    """Writes a computation down; at one chosen value it slips."""

    def __init__(self, rng: random.Random, slip_at: int = -1) -> None:
        self.rng = rng
        self.slip_at = slip_at
        self.count = 0
        self.pieces: list[tuple[str, bool]] = []

    def say(self, text: str) -> None:
        """Write text that is trained on."""
        self.pieces.append((text, True))

    def work(self, value: int, *, plausible: Callable[[int], bool] = lambda _: True) -> int:
        """Write a worked-out value, or a wrong one (not trained on) where the pen slips."""
        slips = self.count == self.slip_at
        self.count += 1
        if slips:
            for _ in range(20):
                wrong = _near(value, self.rng)
                if wrong != value and plausible(wrong):
                    self.pieces.append((str(wrong), False))
                    return wrong
        self.say(str(value))
        return value

    def conclude(self, value: int) -> int:
        """State the outcome."""
        self.say(f" so {value}.")
        return value


Method = Callable[[Pen], int]


@dataclass(frozen=True, slots=True)
class Problem:
    """A question's ways: ``checks`` give a value, ``tests`` say whether a value fits.

    ``spell`` writes a value as the answer it stands for.
    """

    target: int
    quick: Method
    checks: Mapping[str, Method]
    tests: Mapping[str, Callable[..., int]] = field(default_factory=dict)
    spell: Callable[[int], str] = str


def problem_of(item: Item) -> Problem:
    """The ways of a question."""
    return _PROBLEMS[item.family](item)


def _below(top: int) -> Callable[[int], bool]:
    return lambda value: 0 < value < top


def _near(value: int, rng: random.Random) -> int:
    kind = rng.random()
    if kind < 0.4:
        return value + rng.choice((-1, 1))
    if kind < 0.65:
        return value + rng.choice((-10, 10))
    if kind < 0.8:
        return value + rng.choice((-2, 2, -3, 3, -20, 20, -9, 9, -11, 11))
    if kind < 0.85:
        return -value
    return value + rng.randint(-30, 30)


def _chain_sum(item: Item) -> Problem:
    text = str(item.entry["metadata"]["expression"]).replace(" ", "")
    terms = [int(term) for term in re.findall(r"[+-]?\d+", text)]

    def quick(pen: Pen) -> int:
        total = 0
        position = 0
        while position < len(terms):
            size = 3 if position == 0 else 2
            part = terms[position : position + size]
            pen.say(f" {part[0]}" if position == 0 else f"; {part[0]:+}")
            pen.say("".join(f"{term:+}" for term in part[1:]) + "=")
            total = pen.work(total + sum(part))
            position += size
        return pen.conclude(total)

    def line(part: list[int]) -> str:
        return str(part[0]) + "".join(f"{term:+}" for term in part[1:])

    def forward(pen: Pen) -> int:
        rest = terms
        pen.say(line(rest))
        while len(rest) > 1:
            pen.say("=")
            total = pen.work(rest[0] + rest[1])
            rest = [total, *rest[2:]]
            pen.say("".join(f"{term:+}" for term in rest[1:]))
        return pen.conclude(rest[0])

    def backward(pen: Pen) -> int:
        total = 0
        for left in range(len(terms), 0, -1):
            pen.say(f"{line(terms[:left])}, ")
            total = pen.work(total + terms[left - 1])
            pen.say("; ")
        return pen.conclude(total)

    return Problem(int(item.target), quick, {"one by one": forward, "from the back": backward})


def _gcd(item: Item) -> Problem:
    a, b = (int(n) for n in item.entry["metadata"]["numbers"])

    def quick(pen: Pen) -> int:
        # A wrong guess is a wrong multiple or part of the right one far oftener than its neighbour.
        value = gcd(a, b)
        others = [d for d in range(1, 61) if d != value and (d < 4 or a % d == 0 or b % d == 0)]
        slips = pen.count == pen.slip_at
        pen.count += 1
        if slips:
            wrong = pen.rng.choices(others, [1 / d for d in others])[0]
            pen.pieces += [(" so ", True), (str(wrong), False), (".", True)]
            return wrong
        return pen.conclude(value)

    def divide(pen: Pen) -> int:
        big, small = max(a, b), min(a, b)
        while True:
            times = big // small
            pen.say(f"{big}-{times}*{small}=")
            rest = pen.work(big % small, plausible=_below(small))
            if rest == 0:
                return pen.conclude(small)
            pen.say("; ")
            big, small = small, rest

    def primes(pen: Pen) -> int:
        lists = []
        for n in (a, b):
            factors = _factors(n)
            pen.say(f"{n}=" + "*".join(map(str, factors)) + "; ")
            lists.append(factors)
        rest = list(lists[1])
        common = []
        for factor in lists[0]:
            if factor in rest:
                rest.remove(factor)
                common.append(factor)
        pen.say("both " + ("*".join(map(str, common)) if common else "none") + "=")
        return pen.conclude(pen.work(gcd(a, b), plausible=lambda v: v > 0))

    def halve(pen: Pen) -> int:
        x, y, twos = a, b, 1
        pen.say(f"{x},{y}")
        while x % 2 == 0 and y % 2 == 0:
            x, y, twos = x // 2, y // 2, twos * 2
            pen.say(f"; both {x},{y}")
        while x != y:
            if x % 2 == 0:
                pen.say("; ")
                x = pen.work(_odd(x), plausible=lambda v: v > 0 and v % 2 == 1)
                pen.say(f",{y}")
            elif y % 2 == 0:
                pen.say(f"; {x},")
                y = pen.work(_odd(y), plausible=lambda v: v > 0 and v % 2 == 1)
            elif x > y:
                pen.say("; ")
                x = pen.work(x - y, plausible=lambda v: v > 0 and v % 2 == 0)
                pen.say(f",{y}")
            else:
                pen.say(f"; {x},")
                y = pen.work(y - x, plausible=lambda v: v > 0 and v % 2 == 0)
        pen.say(f"; {x}*{twos}=")
        return pen.conclude(pen.work(x * twos, plausible=lambda v: v > 0))

    checks = {"by division": divide, "by primes": primes, "by halving": halve}
    return Problem(int(item.target), quick, checks)


def _leg_counting(item: Item) -> Problem:
    herd = [
        (int(count), str(animal), ANIMALS[animal])
        for animal, count in item.entry["metadata"]["animals"].items()
    ]

    def quick(pen: Pen) -> int:
        parts = []
        for position, (count, _, legs) in enumerate(herd):
            pen.say("+" if position else " ")
            parts.append(pen.work(count * legs, plausible=lambda v: v >= 0))
        pen.say("=")
        return pen.conclude(pen.work(sum(parts), plausible=lambda v: v >= 0))

    def run(order: list[tuple[int, str, int]], unit: int) -> Method:
        def method(pen: Pen) -> int:
            total = 0
            for position, (count, animal, legs) in enumerate(order):
                pen.say("; " if position else "")
                pen.say(f"{animal} {count}*{legs // unit}=")
                part = pen.work(count * legs // unit, plausible=lambda v: v >= 0)
                if position:
                    pen.say(", ")
                    total = pen.work(total + part, plausible=lambda v: v >= 0)
                else:
                    total = part
            if unit > 1:
                pen.say(f"; {total}*{unit}=")
                total = pen.work(total * unit, plausible=lambda v: v >= 0)
            return pen.conclude(total)

        return method

    checks = {
        "from the back": run(herd[::-1], 1),
        "in pairs of legs": run(herd, 2),
        "one by one": run(herd, 1),
    }
    return Problem(int(item.target), quick, checks)


def _simple_equations(item: Item) -> Problem:
    left, right = str(item.entry["metadata"]["equation"]).replace(" ", "").split("=")
    name = str(item.entry["metadata"]["variable"])
    factor = constant = 0
    for term in re.findall(r"[+-]?[^+-]+", left):
        if name in term:
            number = term.replace(f"*{name}", "").replace(name, "1")
            factor = int(number)
        else:
            constant = int(term)
    result = int(right)
    target = int(item.target)

    def quick(pen: Pen) -> int:
        pen.say(" so ")
        value = pen.work(target)
        pen.say(".")
        return value

    def moved(pen: Pen) -> int:
        if constant == 0:
            return result
        pen.say(f"{result}{-constant:+}=")
        value = pen.work(result - constant)
        pen.say("; ")
        return value

    def move(pen: Pen) -> int:
        product = moved(pen)
        pen.say(f"{product}/{factor}=")
        return pen.conclude(pen.work(round(product / factor)))

    def multiples(pen: Pen) -> int:
        product = moved(pen)
        at = min(max(product // factor // 10 * 10, 0), 20)
        reached = at * factor
        if at:
            pen.say(f"{at}*{factor}={reached}")
        else:
            at, reached = 1, factor
            pen.say(f"1*{factor}={factor}")
        while abs(reached) < abs(product) and at < 29:
            at += 1
            pen.say(f"; {at}:")
            reached = pen.work(reached + factor)
        return pen.conclude(at)

    def put_in(pen: Pen, value: int) -> int:
        pen.say(f"{factor}*{value}=")
        outcome = pen.work(factor * value)
        if constant:
            pen.say(f"; {outcome}{constant:+}=")
            outcome = pen.work(outcome + constant)
        fits = outcome == result
        pen.say(f", wanted {result}: " + ("fits." if fits else "no."))
        return int(fits)

    checks = {"by moving": move, "by multiples": multiples}
    return Problem(target, quick, checks, {"by putting it in": put_in})


def _factors(n: int) -> list[int]:
    factors, divisor = [], 2
    while n > 1:
        while n % divisor == 0:
            factors.append(divisor)
            n //= divisor
        divisor += 1
    return factors


def _odd(n: int) -> int:
    return n // (n & -n)


_PROBLEMS: dict[str, Callable[[Item], Problem]] = {
    "chain_sum": _chain_sum,
    "gcd": _gcd,
    "leg_counting": _leg_counting,
    "simple_equations": _simple_equations,
}
