"""The evaluation: every method on the same held-out traces, as the JSON object of the contract.

All tokens count: thinking, trial answers, answers. Every parameter is chosen on the training
questions; those of a policy on the ones among them that only validated it. Intervals come from a
paired bootstrap over the held-out questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rlbudget.agents.rules import PROBE, Rule, rules_for
from rlbudget.console import Advance
from rlbudget.errors import UserError
from rlbudget.evaluate.bootstrap import Resampling, holm, interval, p_value, resample
from rlbudget.evaluate.measure import (
    Learned,
    MeasuredMethod,
    Point,
    measure_learned,
    measure_oracle,
    measure_policy,
    measure_replays,
    measure_rule,
)
from rlbudget.evaluate.outcomes import (
    RELATIVE_PRICES,
    Floats,
    Outcome,
    oracle_gap_closed,
    token_price_of,
    utility,
)
from rlbudget.evaluate.replay import Replay, StopPolicy
from rlbudget.table import TraceTable

VERSION = 1
EM_LOSSES = (0.005, 0.01)


@dataclass(frozen=True, slots=True)
class Assessment:
    """Every method measured, and the bootstrap's draws of the held-out questions."""

    question_ids: npt.NDArray[np.str_]
    """(n,) of the held-out traces"""
    train_questions: int
    """in training and validation; the mean over the folds where there are several"""
    token_prices: tuple[Floats, ...]
    """of ``RELATIVE_PRICES``, on the training traces of each held-out trace's fold: (n,) each"""
    methods: Mapping[str, MeasuredMethod]
    not_applicable: Mapping[str, tuple[str, ...]]
    """rule -> the needs that the traces do not meet"""
    resampling: Resampling
    seed: int
    policies: tuple[str, ...] = ()
    """the methods that are policies, which the others are compared with"""
    folds: int = 1
    parts: tuple[Assessment, ...] = ()
    """the folds by themselves"""


class Composition(Protocol):
    """Policies under strategies: a method that is measured beside the bare policies."""

    @property
    def name(self) -> str:
        """Of the method."""

    @property
    def price_range(self) -> tuple[float, float]:
        """Lowest and highest token price it serves."""

    def replay(self, table: TraceTable, token_price: float) -> Replay:
        """What it does on recorded traces."""


@dataclass(frozen=True, slots=True)
class GapClosed:
    """The mean oracle gap closed over the relative prices, on the held-out traces."""

    mean: float
    draws: Floats
    """(draws,) the same in each draw of the bootstrap"""


def assess(
    train: TraceTable,
    held_out: TraceTable,
    policies: Mapping[str, StopPolicy],
    *,
    rules: Sequence[Rule] | None = None,
    learners: Mapping[str, Learned] | None = None,
    compositions: Sequence[Composition] = (),
    validation: TraceTable | None = None,
    seed: int = 0,
    draws: int = 2000,
    progress: Advance | None = None,
) -> Assessment:
    """Measure rules, policies, learners, compositions and the oracle.

    Tables must have no question in common. ``rules`` left out are those of the tables' kind.
    ``validation`` is the part of ``train`` that policies and learners were not fitted to: their
    operating points are chosen on it alone.
    """
    unfitted = train if validation is None else validation
    rules = rules_for(train) if rules is None else rules
    learned = dict(learners or {})
    if not len(train) or not len(held_out):
        raise UserError("an evaluation needs training and held-out traces; one of them is empty")
    if np.intersect1d(train.question_ids, held_out.question_ids).size:
        raise ValueError("a question is both in the training and in the held-out traces")
    named = {*policies, *(composition.name for composition in compositions)}
    if taken := {*(rule.name for rule in rules), "oracle", *learned} & named:
        raise UserError(
            f"a policy is called {min(taken)!r} like a built-in method; rename its folder"
        )
    prices = tuple(token_price_of(relative, train) for relative in RELATIVE_PRICES)
    methods: dict[str, MeasuredMethod] = {}
    not_applicable: dict[str, tuple[str, ...]] = {}
    total = len(rules) + len(policies) + len(compositions) + len(learned) + 1

    def advance() -> None:
        if progress:
            progress(len(methods) + len(not_applicable), total)

    advance()
    for rule in rules:
        lacking = {*rule.lacking(train), *rule.lacking(held_out)}
        if lacking:
            not_applicable[rule.name] = tuple(sorted(lacking))
        else:
            methods[rule.name] = measure_rule(rule, train, held_out, prices)
        advance()
    for name, policy in policies.items():
        methods[name] = measure_policy(name, policy, unfitted, held_out, prices)
        advance()
    for given in compositions:
        methods[given.name] = measure_replays(
            given.name, given.replay, given.price_range, unfitted, held_out, prices
        )
        advance()
    for name, learner in learned.items():
        methods[name] = measure_learned(name, learner, unfitted, held_out, prices)
        advance()
    methods["oracle"] = measure_oracle(train, held_out, prices)
    advance()
    resampling = resample(held_out.question_ids, draws=draws, seed=seed)
    return Assessment(
        question_ids=held_out.question_ids,
        train_questions=len(np.unique(train.question_ids)),
        token_prices=tuple(np.full(len(held_out), price) for price in prices),
        methods=methods,
        not_applicable=not_applicable,
        resampling=resampling,
        seed=seed,
        policies=tuple(policies),
    )


def utilities(assessment: Assessment, points: Sequence[Point]) -> Floats:
    """(n, prices) utility of each held-out trace under one point for each token price."""
    pairs = zip(points, assessment.token_prices, strict=True)
    return np.stack([utility(point.held_out, price) for point, price in pairs], axis=1)


def gap_closed(assessment: Assessment, of: Floats) -> GapClosed:
    """The gap closed by utilities ``of`` (n, prices), in the whole and in each draw.

    The best constant budget stays the one of the training traces; its utility and the oracle's
    are computed again in each draw. Prices without a gap are left out; NaN if none has one.
    """
    fixed = utilities(assessment, assessment.methods["fixed"].chosen)
    oracle = utilities(assessment, assessment.methods["oracle"].chosen)

    def mean(u: Floats, u_fixed: Floats, u_oracle: Floats) -> Floats:
        gap = u_oracle - u_fixed
        some = gap > 1e-12
        closed = np.divide(u - u_fixed, gap, out=np.zeros_like(gap), where=some)
        count = some.sum(axis=1)
        return np.where(count > 0, closed.sum(axis=1) / np.maximum(count, 1), np.nan)

    whole = mean(*(values.mean(axis=0)[None] for values in (of, fixed, oracle)))
    draws = mean(*(assessment.resampling.means(values) for values in (of, fixed, oracle)))
    return GapClosed(float(whole[0]), draws)


def margin(
    assessment: Assessment, first: Sequence[str], second: Sequence[str]
) -> tuple[float, tuple[float, float]]:
    """Mean oracle gap closed of ``first`` minus ``second``, and its 95% interval by question.

    Each is a list of methods, whose mean counts (the seeds of one agent, say).
    """

    def of(names: Sequence[str]) -> GapClosed:
        each = [utilities(assessment, assessment.methods[name].chosen) for name in names]
        return gap_closed(assessment, np.mean(each, axis=0))

    a, b = of(first), of(second)
    return a.mean - b.mean, interval(a.draws - b.draws)


def evaluate_split(
    train: TraceTable,
    held_out: TraceTable,
    policies: Mapping[str, StopPolicy],
    *,
    rules: Sequence[Rule] | None = None,
    learners: Mapping[str, Learned] | None = None,
    validation: TraceTable | None = None,
    seed: int = 0,
    draws: int = 2000,
    progress: Advance | None = None,
) -> dict[str, Any]:
    """The object of ``evaluation.json`` (version 1): JSON-ready, NaN as null."""
    assessment = assess(
        train, held_out, policies, rules=rules, learners=learners, validation=validation,
        seed=seed, draws=draws, progress=progress,
    )  # fmt: skip
    return as_json(assessment)


def as_json(assessment: Assessment) -> dict[str, Any]:
    """The object of ``evaluation.json``."""
    full = assessment.methods["full"].chosen[0].held_out
    methods = assessment.methods.values()
    content = {
        "version": VERSION,
        "held_out_questions": len(np.unique(assessment.question_ids)),
        "held_out_traces": len(assessment.question_ids),
        "train_questions": assessment.train_questions,
        "folds": assessment.folds,
        "seed": assessment.seed,
        "full": {"exact_match": float(full.exact_match.mean()), "tokens": _tokens(full)},
        "results": [row for measured in methods for row in _results(assessment, measured)],
        "summary": _summaries(assessment),
        "not_applicable": [
            {"method": name, "needs": [_need(need) for need in needs]}
            for name, needs in assessment.not_applicable.items()
        ],
        "frontier": [_frontier(measured) for measured in methods if measured.name != "full"],
    }
    plain: dict[str, Any] = _plain(content)
    return plain


def _results(assessment: Assessment, measured: MeasuredMethod) -> list[dict[str, Any]]:
    full = assessment.methods["full"].chosen[0].held_out
    points = measured.chosen
    utility_of = utilities(assessment, points)
    mean_utility = utility_of.mean(axis=0)
    deltas = np.stack([p.held_out.exact_match - full.exact_match for p in points], axis=1)
    drawn = assessment.resampling.means(np.concatenate([deltas, utility_of], axis=1))
    fixed = utilities(assessment, assessment.methods["fixed"].chosen).mean(axis=0)
    oracle = utilities(assessment, assessment.methods["oracle"].chosen).mean(axis=0)
    return [
        {
            "method": measured.name,
            "kind": measured.kind,
            "relative_price": relative,
            "token_price": float(assessment.token_prices[k].mean()),
            "exact_match": float(point.held_out.exact_match.mean()),
            "exact_match_delta_ci95": interval(drawn[:, k]),
            "tokens": _tokens(point.held_out),
            "token_fraction": float(point.held_out.tokens.mean() / full.tokens.mean()),
            "utility": float(mean_utility[k]),
            "utility_ci95": interval(drawn[:, len(points) + k]),
            "oracle_gap_closed": oracle_gap_closed(
                float(mean_utility[k]), float(fixed[k]), float(oracle[k])
            ),
            "parameters": dict(point.parameters),
        }
        for k, (relative, point) in enumerate(zip(RELATIVE_PRICES, points, strict=True))
    ]


def _summaries(assessment: Assessment) -> list[dict[str, Any]]:
    gaps = {
        name: gap_closed(assessment, utilities(assessment, measured.chosen))
        for name, measured in assessment.methods.items()
    }
    versus = {reference: _verdicts(gaps, reference) for reference in ("full", *assessment.policies)}
    return [
        _summary(assessment, measured, gaps[name])
        | {"versus": {r: verdicts[name] for r, verdicts in versus.items() if name in verdicts}}
        for name, measured in assessment.methods.items()
    ]


def _verdicts(gaps: Mapping[str, GapClosed], reference: str) -> dict[str, dict[str, Any]]:
    """Every method but the bound against one of them, by mean oracle gap closed.

    The verdict says what the method is: ``better`` or ``worse`` than the reference where Holm's
    correction over these comparisons leaves a p-value of at most 0.05, else ``cannot tell``.
    """
    names = [name for name in gaps if name not in (reference, "oracle")]
    differences = [gaps[name].draws - gaps[reference].draws for name in names]
    adjusted = holm([p_value(draws) for draws in differences])
    return {
        name: {
            "margin": gaps[name].mean - gaps[reference].mean,
            "margin_ci95": interval(draws),
            "p_holm": p,
            "verdict": _verdict(gaps[name].mean - gaps[reference].mean, p),
        }
        for name, draws, p in zip(names, differences, adjusted, strict=True)
    }


def _verdict(margin: float, p: float) -> str:
    if not p <= 0.05:
        return "cannot tell"
    return "better" if margin > 0 else "worse"


def _summary(assessment: Assessment, measured: MeasuredMethod, gap: GapClosed) -> dict[str, Any]:
    full = assessment.methods["full"].chosen[0].held_out
    spots = {f"{loss:g}": measured.saving_most(loss) for loss in EM_LOSSES}
    return {
        "method": measured.name,
        "kind": measured.kind,
        "mean_oracle_gap_closed": gap.mean,
        "mean_oracle_gap_closed_ci95": interval(gap.draws),
        "savings_at_em_loss": {
            loss: float(1 - spot.held_out.tokens.mean() / full.tokens.mean())
            for loss, spot in spots.items()
        },
        "held_out_em_loss": {
            loss: float(full.exact_match.mean() - spot.held_out.exact_match.mean())
            for loss, spot in spots.items()
        },
        "parameters_at_em_loss": {loss: dict(spot.parameters) for loss, spot in spots.items()},
    }


def _frontier(measured: MeasuredMethod) -> dict[str, Any]:
    """The operating points that the training traces would have one consider."""
    return {
        "method": measured.name,
        "kind": measured.kind,
        "points": [
            {
                "exact_match": float(point.held_out.exact_match.mean()),
                "tokens": float(point.held_out.tokens.mean()),
                "parameters": dict(point.parameters),
            }
            for point in measured.frontier()
        ],
    }


def _tokens(result: Outcome) -> dict[str, float]:
    return {
        "thinking": float(result.thinking.mean()),
        "probe": float(result.probe.mean()),
        "answer": float(result.answer.mean()),
        "total": float(result.tokens.mean()),
    }


def _need(need: str) -> str:
    return "a trial answer at every checkpoint" if need == PROBE else f"the signal {need}"


def _plain(value: Any) -> Any:
    """JSON-ready: tuples as lists, what is not finite as null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
