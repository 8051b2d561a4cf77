"""What a cross-fitted policy is worth, said by the questions that it was trained on.

Each training question lies in one fold, and the members that did not train on that fold decide on
it. The constant budget and the parameters of every rule are chosen on the other folds, too, and so
are the doubts and the moment in the training, the latter by members of which most trained on it.
The frozen policy is the mean of all members: it was trained on more questions, and is as a rule a
little better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rlbudget.agents.actor import actor_stop_chances
from rlbudget.agents.clone import TriedRule, best_of, named
from rlbudget.agents.together import Actor
from rlbudget.arrays import Floats, Ints
from rlbudget.envs.replay_core import ReplayColumns
from rlbudget.files import json_ready
from rlbudget.policy import outcomes
from rlbudget.policy.bootstrap import Resampling, interval, resample
from rlbudget.policy.operating import Swept, doubted, sweep
from rlbudget.policy.outcomes import RELATIVE_PRICES, Outcome, full_stops, outcome, utility
from rlbudget.traces.table import TraceTable

LEVEL = 0.9
"""of the intervals"""
LOSSES = (0.005, 0.01, 0.02)
"""exact match that may be lost, of the savings that are estimated"""
DRAWS = 2000
STRETCH = 1.15
"""of the interval of a gap closed: the draws know the questions' chance, not that of the folds, of
the members and of what was chosen. Measured on 27 cuts of 250 questions of recordings of their own:
90% intervals held the value on others in 78% of them, stretched in 85%"""
_SMALLEST_GAP = 1e-9


class Play(Protocol):
    """What members give on questions that they were not trained on."""

    def __call__(self, token_price: float, doubt: float = 0.0, /) -> Outcome:
        """At a token price, less a doubt in their logit of STOP: (n,)."""


@dataclass(frozen=True, slots=True)
class OutOfFold:
    """Training traces, each under what was fitted without its question."""

    table: TraceTable
    fold: Ints
    """(n,) of each trace"""
    play: Callable[[float], Outcome]
    """token price -> what the members that did not train on a question give on it, (n,)"""
    tried: Sequence[Sequence[TriedRule]]
    """of each fold, the rules on the other folds"""
    _rules: dict[tuple[str | None, float], Outcome] = field(default_factory=dict)

    @property
    def traces(self) -> list[Ints]:
        """Of each fold."""
        return [np.flatnonzero(self.fold == place) for place in range(len(self.tried))]

    def together(self, of_fold: Callable[[int, TraceTable], Outcome]) -> Outcome:
        """What is chosen fold by fold, in the order of the table."""
        found = [of_fold(k, self.table.take(rows)) for k, rows in enumerate(self.traces)]
        order = np.argsort(np.concatenate(self.traces), kind="stable")
        joined = outcomes.concatenated(found)
        return Outcome(joined.exact_match[order], joined.thinking[order], joined.probe[order],
                       joined.answer[order])  # fmt: skip

    def rule(self, name: str | None, token_price: float) -> Outcome:
        """A rule with the parameters of highest mean utility on the other folds, never stopping
        among them; the best of all rules where no name is given."""

        def of_fold(place: int, own: TraceTable) -> Outcome:
            return _play(own, best_of(named(self.tried[place], name), token_price))

        if (name, token_price) not in self._rules:
            self._rules[name, token_price] = self.together(of_fold)
        return self._rules[name, token_price]

    def fixed(self, token_price: float) -> Outcome:
        """The best constant budget of the other folds."""
        return self.rule("fixed", token_price)


def play_of(columns: ReplayColumns, fold: Ints, actors: Sequence[Actor], preset: str) -> Play:
    """What the actor of each fold gives on its traces of ``columns`` at a token price, less a doubt
    in its logit of STOP."""  # fmt: skip
    table = columns.table
    charged = outcomes.charged_by(preset, table, columns.features)
    rows = [table.rows_of(np.flatnonzero(fold == place))[0] for place in range(len(actors))]

    def play(token_price: float, doubt: float = 0.0, /) -> Outcome:
        inputs, chance = columns.inputs, np.empty(len(columns.inputs))
        inputs[:, -1] = columns.scaling.price(token_price)
        for actor, own in zip(actors, rows, strict=True):
            chance[own] = actor_stop_chances(actor, inputs[own])
        says = chance > 1 / (1 + math.exp(-doubt))
        return outcome(table, outcomes.first_stop(table, says), probes_charged=charged)

    return play


def estimate(
    given: OutOfFold, prices: Mapping[float, float], swept: Sequence[Swept], seed: int = 0
) -> dict[str, Any]:
    """The estimates with their intervals, JSON-ready; ``prices`` are relative -> token price.

    ``swept`` is what ``given.play`` gives at operating prices. Whether the policy is better than a
    rule is for ``evaluate.verdicts`` to say: ``over_rule`` is a mean difference in utility, each
    price weighted by what there is to gain, with the rule of the highest mean.
    """
    table = given.table
    resampling = resample(table.question_ids, draws=DRAWS, seed=seed)
    names = sorted({one.rule.name for tried in given.tried for one in tried})
    at = {r: _At(given, price, names) for r, price in prices.items()}
    gap = _Gap(resampling, list(at.values()))
    means = {name: gap.value([one.utility[name] for one in at.values()]) for name in names}
    known = {name: mean for name, mean in means.items() if not np.isnan(mean)}
    best = max(known, key=known.__getitem__, default="full")
    own = [one.own_utility for one in at.values()]
    rule = [one.utility[best] for one in at.values()]
    found = {
        "questions": resampling.questions,
        "level": LEVEL,
        "oracle_gap_closed": gap.value(own),
        "oracle_gap_closed_ci90": gap.interval(own),
        "rule": {
            "name": best,
            "oracle_gap_closed": gap.value(rule),
            "oracle_gap_closed_ci90": gap.interval(rule),
        },
        "over_rule": gap.difference(own, rule),
        "over_never": gap.difference(own, [one.utility["full"] for one in at.values()]),
        "prices": [
            {
                "relative_price": relative,
                "token_price": prices[relative],
                "exact_match": float(one.own.exact_match.mean()),
                "tokens": float(one.own.tokens.mean()),
                "utility": float(one.own_utility.mean()),
                "oracle_gap_closed": gap.at(k, one.own_utility),
                "oracle_gap_closed_ci90": gap.interval_at(k, one.own_utility),
                "never": gap.at(k, one.utility["full"]),
                "rule": one.best,
                "rule_oracle_gap_closed": gap.at(k, one.any_rule),
                **_beside_full(table, one.own, resampling),
                **_beside_full(table, given.rule(one.best, prices[relative]), resampling, "rule_"),
            }
            for k, (relative, one) in enumerate(at.items())
        ],
        "savings": _savings(given, swept, resampling),
        "swept": [[one.token_price, one.em_loss, one.savings] for one in swept],
        "full": {
            "exact_match": float(table.final_exact_match.mean()),
            "tokens": float(table.full_tokens.mean()),
        },
    }
    plain: dict[str, Any] = json_ready(found)
    return plain


class _At:
    """What everything gives out of fold at a price: utilities (n,)."""

    def __init__(self, given: OutOfFold, price: float, names: Sequence[str]) -> None:
        self.own = given.play(price)
        self.own_utility = utility(self.own, price)
        self.utility = {name: utility(given.rule(name, price), price) for name in names}
        self.any_rule = utility(given.rule(None, price), price)
        # Of equals that which is named first, never stopping before all others.
        order = ["full", *(name for name in names if name != "full")]
        self.best = max(order, key=lambda name: float(self.utility[name].mean()))
        stops = outcomes.oracle_stops(given.table, price)
        self.oracle = utility(outcome(given.table, stops), price)


class _Gap:
    """Shares of the gap between the best constant budget and the oracle, and their intervals."""

    def __init__(self, resampling: Resampling, at: Sequence[_At]) -> None:
        self._resampling = resampling
        self._fixed = [one.utility["fixed"] for one in at]
        self._gaps = [one.oracle - one.utility["fixed"] for one in at]
        self._gap_draws = [resampling.means(gap) for gap in self._gaps]
        self._open = [float(gap.mean()) > _SMALLEST_GAP for gap in self._gaps]

    def at(self, k: int, own: Floats) -> float:
        if not self._open[k]:
            return float("nan")
        return float((own - self._fixed[k]).mean() / self._gaps[k].mean())

    def _draws(self, k: int, own: Floats) -> Floats:
        over = self._resampling.means(own - self._fixed[k])
        gap = self._gap_draws[k]
        share: Floats = np.full(len(gap), np.nan)
        np.divide(over, gap, out=share, where=gap > _SMALLEST_GAP)
        return share

    def value(self, own: Sequence[Floats]) -> float:
        known = [self.at(k, one) for k, one in enumerate(own) if self._open[k]]
        return float(np.mean(known)) if known else float("nan")

    def interval(self, own: Sequence[Floats]) -> tuple[float, float]:
        draws = [self._draws(k, one) for k, one in enumerate(own) if self._open[k]]
        if not draws:
            return float("nan"), float("nan")
        return self._around(self.value(own), np.mean(draws, axis=0))

    def _around(self, value: float, draws: Floats) -> tuple[float, float]:
        """The interval of a share. Of few questions the draws of a ratio lean to the side on which
        the estimate itself errs: they are reflected in it (basic bootstrap; Davison and Hinkley,
        Bootstrap Methods, 1997, section 5.2), and stretched for what they do not know."""
        low, high = interval(draws, self._resampling.questions, level=LEVEL)
        return value - STRETCH * (high - value), value + STRETCH * (value - low)

    def interval_at(self, k: int, own: Floats) -> tuple[float, float]:
        if not self._open[k]:
            return float("nan"), float("nan")
        return self._around(self.at(k, own), self._draws(k, own))

    def difference(self, own: Sequence[Floats], other: Sequence[Floats]) -> dict[str, Any]:
        """In the mean share of the gap."""
        apart = [
            (one - two) / float(gap.mean())
            for one, two, gap, is_open in zip(own, other, self._gaps, self._open, strict=True)
            if is_open
        ]
        if not apart:
            return {"difference": float("nan"), "ci90": (float("nan"),) * 2}
        mean: Floats = np.mean(apart, axis=0)
        draws = self._resampling.means(mean)
        return {
            "difference": float(mean.mean()),
            "ci90": interval(draws, self._resampling.questions, level=LEVEL),
        }


def _savings(
    given: OutOfFold, swept: Sequence[Swept], resampling: Resampling
) -> list[dict[str, Any]]:
    """What may be saved where so much exact match may be lost.

    The price is chosen on the other folds, with the doubt of the operating points, and so are the
    best rule and its parameters.
    """
    table = given.table
    full = outcome(table, full_stops(table))
    at = [given.play(one.token_price) for one in swept]
    others = [given.fold != place for place in range(len(given.tried))]
    of_policy, of_rules = [], []
    for rows, tried in zip(others, given.tried, strict=True):
        rest = table.take(np.flatnonzero(rows))
        of_policy.append(_swept(rest, [_some(one, rows) for one in at]))
        of_rules.append(_swept(rest, [one.outcome for one in tried]))
    found = []
    for loss in LOSSES:

        def policy(place: int, own: TraceTable, loss: float = loss) -> Outcome:
            best = _saving_most(of_policy[place], loss)
            return _some(full if best is None else at[best], given.traces[place])

        def rule(place: int, own: TraceTable, loss: float = loss) -> Outcome:
            return _play(own, given.tried[place][_saving_most(of_rules[place], loss) or 0])

        row: dict[str, Any] = {"max_em_loss": loss}
        for name, chosen in (("", given.together(policy)), ("rule_", given.together(rule))):
            row |= _beside_full(table, chosen, resampling, name)
        found.append(row)
    return found


def _beside_full(
    table: TraceTable, chosen: Outcome, resampling: Resampling, name: str = ""
) -> dict[str, Any]:
    """What is saved and lost, of tokens and exact match of the full decodes."""
    full = outcome(table, full_stops(table))
    lost, saved = full.exact_match - chosen.exact_match, full.tokens - chosen.tokens
    share, n = resampling.means(saved) / resampling.means(full.tokens), resampling.questions
    # What was not seen to be lost may be lost all the same: the interval is never without width.
    ends = resampling.bounds(lost, low=-1.0, high=1.0) if saved.any() else (lost, lost)
    tail = (1 - LEVEL) / 2
    lost_ends = tuple(float(np.quantile(e, q)) for e, q in zip(ends, (tail, 1 - tail), strict=True))
    return {
        f"{name}savings": float(saved.mean() / full.tokens.mean()),
        f"{name}savings_ci90": interval(share, n, level=LEVEL),
        f"{name}em_loss": float(lost.mean()),
        f"{name}em_loss_ci90": lost_ends,
    }


_Swept = tuple[list[Swept], int]
"""what several settings give on some questions, and how many these are"""


def _swept(table: TraceTable, each: Sequence[Outcome]) -> _Swept:
    played = iter(each)
    swept = sweep(table, [0.0] * len(each), lambda _: next(played))
    return swept, len(np.unique(table.question_ids))


def _saving_most(given: _Swept, max_em_loss: float) -> int | None:
    """Which saves most of those whose ``doubted`` loss is allowed; None where there is none."""
    swept, questions = given
    fits = [k for k, one in enumerate(swept) if doubted(one, questions) <= max_em_loss + 1e-12]
    return max(fits, key=lambda k: swept[k].savings, default=None)


def _some(given: Outcome, rows: Any) -> Outcome:
    return Outcome(given.exact_match[rows], given.thinking[rows], given.probe[rows],
                   given.answer[rows])  # fmt: skip


def _play(table: TraceTable, chosen: TriedRule) -> Outcome:
    return chosen.rule.outcome(table, chosen.parameters)


def relative_prices(table: TraceTable) -> dict[float, float]:
    """Relative price -> token price on these traces."""
    return {relative: outcomes.token_price_of(relative, table) for relative in RELATIVE_PRICES}
