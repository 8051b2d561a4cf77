"""One generated line of reasoning: a quick attempt, checks by other computations, an end.

The quick attempt takes large steps, so that a small network is honestly unsure of it. A check
is a *different* computation in small steps. Attempts vote; thinking may end once one value has
two votes and the lead, and often goes on although it might have ended.

Some attempts slip: one value in them is wrong and what follows is worked out from it. The
wrong value itself is never trained on, only the noticing and what comes after.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rlbudget.tasks.reasoning_gym import Item
from runs.models.reasoner.families import Pen, Problem, problem_of

MAX_CHECKS = 6


@dataclass(frozen=True, slots=True)
class Habits:
    """How somebody thinks: shares of thoughts in which something happens."""

    opening: str = "Quick look:"
    slip_quick: float = 0.35
    """the first attempt goes wrong"""
    slip_check: float = 0.08
    """a check goes wrong"""
    end_after_quick: float = 0.12
    """the thinking ends after a first attempt that is right"""
    extra_checks: tuple[float, ...] = (0.4, 0.33, 0.19, 0.08)
    """0, 1, 2 ... further checks after the thinking might have ended"""


@dataclass(frozen=True, slots=True)
class Thought:
    """Thinking as pieces of text, each with whether it is trained on, and the answer."""

    pieces: tuple[tuple[str, bool], ...]
    answer: str


def think(
    item: Item,
    rng: random.Random,
    *,
    problem_of: Callable[[Item], Problem] = problem_of,
    habits: Habits = Habits(),
) -> Thought:
    """A line of reasoning that ends with the right answer, though not without mistakes."""
    problem = problem_of(item)
    while True:
        pieces, value = _attempts(problem, rng, habits)
        if value is not None and problem.spell(value) == item.target:
            return Thought(tuple(pieces), item.target)


def _attempts(
    problem: Problem, rng: random.Random, habits: Habits
) -> tuple[list[tuple[str, bool]], int | None]:
    pieces: list[tuple[str, bool]] = [(habits.opening, True)]
    spell = problem.spell
    quick, value = _write(problem.quick, rng, rng.random() < habits.slip_quick)
    pieces += quick
    votes = Counter({value: 1})
    leader: int | None = value
    if value == problem.target and rng.random() < habits.end_after_quick:
        return [*pieces, (" Done.", True)], leader
    extra = rng.choices(range(len(habits.extra_checks)), habits.extra_checks)[0]
    used: list[str] = []
    for number in range(MAX_CHECKS):
        name = _choose(problem, used, leader, rng)
        used.append(name)
        phrase = "let me check" if number == 0 else "once more"
        pieces.append((f" Wait, {phrase} {name}: ", True))
        slip = rng.random() < habits.slip_check
        if name in problem.tests and leader is not None:
            test = partial(problem.tests[name], value=leader)
            written, fits = _write(test, rng, slip)
            pieces += written
            if fits:
                votes[leader] += 1
                pieces.append((f" Same {spell(leader)}.", True))
            else:
                del votes[leader]
                leader = votes.most_common(1)[0][0] if votes else None
                pieces.append(
                    (" Hmm." if leader is None else f" Hmm, back to {spell(leader)}.", True)
                )
        else:
            written, value = _write(problem.checks[name], rng, slip)
            pieces += written
            votes[value] += 1
            before, fits = leader, value == leader
            if leader is None or votes[value] >= votes[leader]:
                leader = value
            if before is not None:
                # Both values side by side, then the verdict, then the value that leads now.
                verdict = "Same" if fits else "Hmm, now" if leader == value else "Hmm, still"
                pieces.append((f" Before {spell(before)}. {verdict} {spell(leader)}.", True))
        ranked = [count for _, count in votes.most_common(2)]
        ahead = bool(ranked) and ranked[0] >= 2 and (len(ranked) == 1 or ranked[0] > ranked[1])
        if ahead and fits:
            if extra == 0:
                return [*pieces, (" Done.", True)], leader
            extra -= 1
    return pieces, None


def _choose(problem: Problem, used: list[str], leader: int | None, rng: random.Random) -> str:
    names: list[str] = [*problem.checks, *(problem.tests if leader is not None else ())]
    fresh = [name for name in names if name not in used]
    return rng.choice(fresh or [name for name in names if name != used[-1]] or names)


def _write(
    method: Callable[[Pen], int], rng: random.Random, slip: bool
) -> tuple[list[tuple[str, bool]], int]:
    """Run a method; to slip, run it once to count its values and again to spoil one."""
    pen = Pen(rng)
    value = method(pen)
    if slip and pen.count:
        pen = Pen(rng, slip_at=rng.randrange(pen.count))
        value = method(pen)
    return pen.pieces, value
