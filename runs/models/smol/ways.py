"""How each family's questions are worked out for SmolLM2: a first way and different checks.

Digits are tokens of their own in SmolLM2, so everything is spelled compactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import date

from reasoning_gym.arithmetic.leg_counting import ANIMALS

from rlbudget.tasks.reasoning_gym import Item
from runs.models.reasoner.families import Method, Pen, Problem

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def teachable(item: Item) -> bool:
    """Whether the question has a short worked solution whose steps can be read."""
    if item.family != "gsm_symbolic":
        return True
    return item.target.isdigit() and len(_lines(item)) <= 4 and len(_steps(item)) >= 1


def problem_of(item: Item) -> Problem:
    """The ways of a question."""
    problem = _PROBLEMS[item.family](item)
    return replace(
        problem,
        quick=_trimmed(problem.quick),
        checks={name: _trimmed(check) for name, check in problem.checks.items()},
        tests={name: _trimmed(test) for name, test in problem.tests.items()},
    )


def _trimmed(method: Callable[..., int]) -> Callable[..., int]:
    """The same way, not beginning with a space: what introduces it ends with one."""

    def run(pen: Pen, **given: int) -> int:
        start = len(pen.pieces)
        value = method(pen, **given)
        text, trained = pen.pieces[start]
        pen.pieces[start] = (text.lstrip(), trained)
        return value

    return run


def _positive(value: int) -> bool:
    return value >= 0


def _outcome(pen: Pen, value: int) -> int:
    """State an outcome that may slip."""
    pen.say(" so ")
    value = pen.work(value, plausible=_positive)
    pen.say(".")
    return value


def _chain_sum(item: Item) -> Problem:
    text = str(item.entry["metadata"]["expression"]).replace(" ", "")
    terms = [int(term) for term in re.findall(r"[+-]?\d+", text)]

    def forward(pen: Pen) -> int:
        total = terms[0]
        for position, term in enumerate(terms[1:]):
            pen.say(f"{', ' if position else ' '}{total}{term:+}=")
            total = pen.work(total + term)
        return pen.conclude(total)

    def backward(pen: Pen) -> int:
        total = terms[-1]
        for position, term in enumerate(terms[-2::-1]):
            pen.say(f"{', ' if position else ' '}{term}{total:+}=")
            total = pen.work(total + term)
        return pen.conclude(total)

    def parted(pen: Pen) -> int:
        sums = []
        for name, part in (
            ("plus", [t for t in terms if t > 0]),
            ("minus", [-t for t in terms if t < 0]),
        ):
            pen.say(f" {name} ")
            total = part[0] if part else 0
            if len(part) < 2:
                pen.say(str(total))
            for position, term in enumerate(part[1:]):
                pen.say(f"{', ' if position else ''}{total}+{term}=")
                total = pen.work(total + term)
            pen.say(",")
            sums.append(total)
        pen.say(f" {sums[0]}-{sums[1]}=")
        return pen.conclude(pen.work(sums[0] - sums[1]))

    return Problem(
        int(item.target), forward, {"from the back": backward, "plus and minus apart": parted}
    )


def _leg_counting(item: Item) -> Problem:
    herd = [
        (int(count), str(animal), ANIMALS[animal])
        for animal, count in item.entry["metadata"]["animals"].items()
    ]

    def products(pen: Pen) -> int:
        parts = []
        for position, (count, animal, legs) in enumerate(herd):
            pen.say(f"{',' if position else ''} {animal} {count}*{legs}=")
            parts.append(pen.work(count * legs, plausible=_positive))
        total = parts[0]
        for part in parts[1:]:
            pen.say(f", {total}+{part}=")
            total = pen.work(total + part, plausible=_positive)
        return pen.conclude(total)

    def running(pen: Pen) -> int:
        total = 0
        for position, (count, animal, legs) in enumerate(herd[::-1]):
            pen.say(f"{',' if position else ''} {animal} {legs}*{count}=")
            part = pen.work(count * legs, plausible=_positive)
            if position:
                pen.say(f", {part}+{total}=")
                total = pen.work(total + part, plausible=_positive)
            else:
                total = part
        return pen.conclude(total)

    def by_legs(pen: Pen) -> int:
        total = 0
        groups: dict[int, list[int]] = {}
        for count, _, legs in herd:
            groups.setdefault(legs, []).append(count)
        for position, (legs, counts) in enumerate(sorted(groups.items())):
            pen.say(f"{',' if position else ''} with {legs}: ")
            number = counts[0]
            if len(counts) > 1:
                pen.say("+".join(map(str, counts)) + "=")
                number = pen.work(sum(counts), plausible=_positive)
            else:
                pen.say(str(number))
            pen.say(f", {number}*{legs}=")
            part = pen.work(number * legs, plausible=_positive)
            if position:
                pen.say(f", {total}+{part}=")
                total = pen.work(total + part, plausible=_positive)
            else:
                total = part
        return pen.conclude(total)

    return Problem(
        int(item.target), products, {"from the back": running, "by number of legs": by_legs}
    )


def _simple_equations(item: Item) -> Problem:
    left, right = str(item.entry["metadata"]["equation"]).replace(" ", "").split("=")
    name = str(item.entry["metadata"]["variable"])
    factor = constant = 0
    for term in re.findall(r"[+-]?[^+-]+", left):
        if name in term:
            number = term.replace(f"*{name}", "").replace(name, "1")
            factor += int(number)
        else:
            constant += int(term)
    result = int(right)

    def moved(pen: Pen) -> int:
        if constant == 0:
            pen.say(f" {factor}{name}={result}")
            return result
        pen.say(f" {factor}{name}={result}{-constant:+}=")
        return pen.work(result - constant)

    def move(pen: Pen) -> int:
        product = moved(pen)
        pen.say(f", {name}={product}/{factor}=")
        return pen.conclude(pen.work(round(product / factor)))

    def multiples(pen: Pen) -> int:
        product = moved(pen)
        at, reached = 1, factor
        pen.say(f", 1:{factor}")
        while abs(reached) < abs(product) and at < 12:
            at += 1
            pen.say(f" {at}:")
            reached = pen.work(reached + factor)
        return pen.conclude(at)

    def put_in(pen: Pen, value: int) -> int:
        pen.say(f" {factor}*{value}=")
        outcome = pen.work(factor * value)
        if constant:
            pen.say(f", {outcome}{constant:+}=")
            outcome = pen.work(outcome + constant)
        fits = outcome == result
        pen.say(f", wanted {result}, " + ("fits." if fits else "no."))
        return int(fits)

    return Problem(
        int(item.target), move, {"by multiples": multiples}, {"by putting it in": put_in}
    )


def _aiw(item: Item) -> Problem:
    who = item.question.split()[0]
    friends = "female friends" in item.question
    word = "female friends" if friends else "sisters"
    found = re.search(rf"(\d+) {word}", item.question)
    assert found is not None
    number = int(found.group(1))

    def plus_one(pen: Pen) -> int:
        pen.say(f" {who} is one of the {word}, {number}+1=")
        return pen.conclude(pen.work(number + 1, plausible=_positive))

    def count(pen: Pen) -> int:
        pen.say(f" {who} 1")
        total = 1
        for _ in range(number):
            pen.say(" ")
            total = pen.work(total + 1, plausible=_positive)
        return pen.conclude(total)

    def test(pen: Pen, value: int) -> int:
        pen.say(f" without {who} {value}-1=")
        rest = pen.work(value - 1)
        fits = rest == number
        pen.say(f", {who} has {number} {word}, " + ("fits." if fits else "no."))
        return int(fits)

    return Problem(int(item.target), plus_one, {"by counting": count}, {"by taking her away": test})


def _calendar(item: Item) -> Problem:
    meta = item.entry["metadata"]
    start = date.fromisoformat(str(meta["start_date"])).weekday()
    offset = int(meta["offset_days"])
    step = 1 if offset > 0 else -1
    size = abs(offset)
    target = DAYS.index(item.target)

    def walk(pen: Pen, day: int, days: int, way: int) -> int:
        for number in range(1, days + 1):
            pen.say(f" {number} ")
            day = _day(pen, (day + way) % 7)
        return day

    def weeks(pen: Pen) -> int:
        pen.say(f" {size}-{size // 7 * 7}=")
        rest = pen.work(size % 7, plausible=lambda v: 0 <= v < 7)
        pen.say(f", {DAYS[start]}")
        return _conclude_day(pen, walk(pen, start, rest, step))

    def other_way(pen: Pen) -> int:
        over = (size // 7 + 1) * 7
        pen.say(f" {over}-{size}=")
        rest = pen.work(over - size, plausible=lambda v: 0 < v <= 7)
        pen.say(f", other way, {DAYS[start]}")
        return _conclude_day(pen, walk(pen, start, rest, -step))

    def numbers(pen: Pen) -> int:
        total = start + offset
        pen.say(f" {DAYS[start]}={start}, {start}{offset:+}=")
        total = pen.work(total)
        nearest = total // 7 * 7
        pen.say(f", {total}{-nearest:+}=")
        return _conclude_day(pen, _day_of(pen, pen.work(total - nearest)))

    checks = {"the other way round": other_way, "by numbers": numbers}
    return Problem(target, weeks, checks, spell=DAYS.__getitem__)


def _day(pen: Pen, day: int) -> int:
    """Write a weekday, a neighbouring one where the pen slips."""
    slips = pen.count == pen.slip_at
    pen.count += 1
    if slips:
        wrong = (day + pen.rng.choice((-1, 1))) % 7
        pen.pieces.append((DAYS[wrong], False))
        return wrong
    pen.say(DAYS[day])
    return day


def _day_of(pen: Pen, number: int) -> int:
    pen.say(" is ")
    return _day(pen, number % 7)


def _conclude_day(pen: Pen, day: int) -> int:
    pen.say(f" so {DAYS[day]}.")
    return day


_EQUATION = re.compile(r"(?<![\d.*x+/-])(\d+)\s*([+\-*/x])\s*(\d+)\s*=\s*(\d+)(?![\d.]|\s*[*/x+])")


def _holds(a: int, op: str, b: int, c: int) -> bool:
    """Whether ``a op b = c``; a worked solution also has fractions of something written so."""
    if op == "/":
        return b > 0 and a == b * c
    return c == {"+": a + b, "-": a - b}.get(op, a * b)


def _lines(item: Item) -> list[str]:
    """The worked solution, a sentence each, without currencies."""
    text = str(item.entry["metadata"]["answer_cot"]).partition("\n####")[0]
    lines = (re.sub(r"\s+", " ", line) for line in re.sub(r"[$€£¥]", "", text).split("\n"))
    return [line.strip().rstrip(".") for line in lines]


def _steps(item: Item) -> list[tuple[int, str, int, int]]:
    """The equations ``a op b = c`` of the worked solution that hold as they stand."""
    found = (
        (int(a), "*" if op == "x" else op, int(b), int(c))
        for line in _lines(item)
        for a, op, b, c in _EQUATION.findall(line)
    )
    return [step for step in found if _holds(*step)]


def _gsm_symbolic(item: Item) -> Problem:
    lines, steps = _lines(item), _steps(item)
    target = int(item.target)

    def solution(pen: Pen) -> int:
        # The worked solution as it is; only its outcome may slip.
        pen.say(" " + ". ".join(lines) + ".")
        return _outcome(pen, target)

    def inverse(pen: Pen, value: int) -> int:
        fits = value == target
        for position, (a, op, b, c) in enumerate(steps):
            pen.say(", " if position else "")
            if op == "*" and b == 0:
                pen.say(f"{a}*0=0")
            else:
                back = {"+": "-", "-": "+", "*": "/", "/": "*"}[op]
                pen.say(f"{c}{back}{b}={a}")
        pen.say(", fits." if fits else ", no.")
        return int(fits)

    def again(pen: Pen) -> int:
        for position, (a, op, b, c) in enumerate(steps):
            pen.say(f"{', ' if position else ''}{a}{op}{b}=")
            pen.work(c, plausible=_positive)
        return _outcome(pen, target)

    return Problem(target, solution, {"only the numbers": again}, {"the other way": inverse})


_PROBLEMS: dict[str, Callable[[Item], Problem]] = {
    "aiw": _aiw,
    "calendar_arithmetic": _calendar,
    "chain_sum": _chain_sum,
    "gsm_symbolic": _gsm_symbolic,
    "leg_counting": _leg_counting,
    "simple_equations": _simple_equations,
}

__all__ = ["DAYS", "Method", "Problem", "problem_of"]
