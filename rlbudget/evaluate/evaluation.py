"""The evaluation: every method on the same held-out traces, as the JSON object of the contract.

All tokens count: thinking, trial answers, answers. Every parameter is chosen on the training
questions; those of a policy on the ones among them that only validated it. Intervals and verdicts
are those of ``rlbudget.evaluate.verdicts``: weights of the held-out questions, one unseen among
them, drawn once for all methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from rlbudget.agents.rules import PROBE, Rule, rules_for
from rlbudget.arrays import Floats, Strs
from rlbudget.console import Advance, quiet
from rlbudget.errors import UserError
from rlbudget.evaluate.measure import (
    NEVER,
    Composition,
    Learned,
    Method,
    Point,
    Sets,
    measure_composition,
    measure_learned,
    measure_oracle,
    measure_policy,
    measure_rule,
)
from rlbudget.evaluate.verdicts import (
    LEVEL,
    Paired,
    mean_interval,
    most_utility,
    paired_by,
)
from rlbudget.files import json_ready
from rlbudget.policy.bootstrap import Resampling, holm, resample
from rlbudget.policy.outcomes import (
    RELATIVE_PRICES,
    Outcome,
    oracle_gap_closed,
    token_price_of,
    utility,
)
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.traces.table import TraceTable

VERSION = 1
EM_LOSSES = (0.005, 0.01)


@dataclass(frozen=True, slots=True)
class Assessment:
    """Every method measured, and the bootstrap's draws of the held-out questions."""

    question_ids: Strs
    """(n,) of the held-out traces"""
    train_questions: int
    """in training and validation; the mean over the folds where there are several"""
    token_prices: tuple[Floats, ...]
    """of ``RELATIVE_PRICES``, on the training traces of each held-out trace's fold: (n,) each"""
    methods: Mapping[str, Method]
    not_applicable: Mapping[str, tuple[str, ...]]
    """rule -> the needs that the traces do not meet"""
    resampling: Resampling
    seed: int
    policies: tuple[str, ...] = ()
    """the methods that are policies, which the others are compared with"""
    parts: tuple[Assessment, ...] = ()
    """the folds by themselves, where there are several"""

    @property
    def full(self) -> Outcome:
        """The full decodes of the held-out traces."""
        return self.methods["full"].chosen[0].held_out


@dataclass(frozen=True, slots=True)
class Measure:
    """What methods are compared in: a weighted mean of their utilities at the relative prices."""

    name: str
    """``oracle gap closed``, or ``utility`` where no price has a gap"""
    weights: Floats
    """(prices,) what a unit of utility counts at each; 0 where there is no gap"""
    most: float
    """the largest difference that two methods can have on a trace"""


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
    progress: Advance = quiet,
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
    on, on_unfitted = Sets(train, held_out, prices), Sets(unfitted, held_out, prices)
    not_applicable: dict[str, tuple[str, ...]] = {}
    to_measure: list[Callable[[], Method]] = []
    for rule in rules:
        if lacking := {*rule.lacking(train), *rule.lacking(held_out)}:
            not_applicable[rule.name] = tuple(sorted(lacking))
        else:
            to_measure.append(partial(measure_rule, rule, on))
    for name, policy in policies.items():
        to_measure.append(partial(measure_policy, name, policy, on_unfitted))
    for given in compositions:
        to_measure.append(partial(measure_composition, given, on_unfitted))
    for name, learner in learned.items():
        to_measure.append(partial(measure_learned, name, learner, on_unfitted))
    to_measure.append(partial(measure_oracle, on))
    methods: dict[str, Method] = {}
    for measure in to_measure:
        progress(len(methods), len(to_measure))
        method = measure()
        methods[method.name] = method
    progress(len(methods), len(to_measure))
    return Assessment(
        question_ids=held_out.question_ids,
        train_questions=len(np.unique(train.question_ids)),
        token_prices=tuple(np.full(len(held_out), price) for price in prices),
        methods=methods,
        not_applicable=not_applicable,
        resampling=resample(held_out.question_ids, draws=draws, seed=seed),
        seed=seed,
        policies=tuple(policies),
    )


def utilities(assessment: Assessment, name: str) -> Floats:
    """(n, prices) utility of each held-out trace under what a method chose at each token price."""
    pairs = zip(assessment.methods[name].chosen, assessment.token_prices, strict=True)
    return np.stack([utility(point.held_out, price) for point, price in pairs], axis=1)


def measure_of(assessment: Assessment) -> Measure:
    """The mean oracle gap closed, or the mean utility where there is no gap at any price.

    The gap between the oracle and the best constant budget of the training traces is taken as it
    is on the held-out ones; prices without one count nothing.
    """
    fixed, oracle = (utilities(assessment, name).mean(axis=0) for name in ("fixed", "oracle"))
    gap = oracle - fixed
    some = gap > 1e-12
    weights = np.divide(1.0, gap, out=np.zeros_like(gap), where=some)
    weights = weights / some.sum() if some.any() else np.full(len(gap), 1 / len(gap))
    each = [
        most_utility(price, *(method.chosen[k].held_out for method in assessment.methods.values()))
        for k, price in enumerate(assessment.token_prices)
    ]
    return Measure(
        "oracle gap closed" if some.any() else "utility", weights, float(weights @ np.array(each))
    )


def gap_closed(assessment: Assessment, name: str) -> float:
    """The mean oracle gap closed by a method; NaN where no price has a gap."""
    measure = measure_of(assessment)
    if measure.name == "utility":
        return math.nan
    over = utilities(assessment, name) - utilities(assessment, "fixed")
    return float(over.mean(axis=0) @ measure.weights)


def compared(assessment: Assessment, first: Sequence[str], second: Sequence[str]) -> Paired:
    """``first`` minus ``second`` in mean oracle gap closed, in mean utility where there is no gap.

    Each is a list of methods, whose mean counts (the seeds of one agent, say).
    """

    def of(names: Sequence[str]) -> Floats:
        mean: Floats = np.mean([utilities(assessment, name) for name in names], axis=0)
        return mean

    measure = measure_of(assessment)
    difference = (of(first) - of(second)) @ measure.weights
    return paired_by(assessment.resampling, difference, most=measure.most)


def as_json(assessment: Assessment) -> dict[str, Any]:
    """The object of ``evaluation.json``."""
    full, methods = assessment.full, assessment.methods.values()
    content = {
        "version": VERSION,
        "held_out_questions": len(np.unique(assessment.question_ids)),
        "held_out_traces": len(assessment.question_ids),
        "train_questions": assessment.train_questions,
        "folds": len(assessment.parts) or 1,
        "seed": assessment.seed,
        "full": {"exact_match": float(full.exact_match.mean()), "tokens": _tokens(full)},
        "results": [row for method in methods for row in _results(assessment, method)],
        "summary": _summaries(assessment),
        "not_applicable": [
            {"method": name, "needs": [_need(need) for need in needs]}
            for name, needs in assessment.not_applicable.items()
        ],
        "frontier": [_frontier(method) for method in methods if method.name != "full"],
    }
    plain: dict[str, Any] = json_ready(content)
    return plain


def _results(assessment: Assessment, method: Method) -> list[dict[str, Any]]:
    full = assessment.full
    own = utilities(assessment, method.name)
    means = [
        own.mean(axis=0),
        *(utilities(assessment, n).mean(axis=0) for n in ("fixed", "oracle")),
    ]
    dearest = max(float(point.held_out.tokens.max()) for point in method.chosen)
    return [
        {
            "method": method.name,
            "kind": method.kind,
            "relative_price": relative,
            "token_price": float(assessment.token_prices[k].mean()),
            "exact_match": float(point.held_out.exact_match.mean()),
            "exact_match_delta_ci95": _delta_interval(assessment, method.name, point),
            "tokens": _tokens(point.held_out),
            "token_fraction": float(point.held_out.tokens.mean() / full.tokens.mean()),
            "utility": float(means[0][k]),
            "utility_ci95": mean_interval(
                assessment.resampling, own[:, k],
                low=-float(assessment.token_prices[k].max()) * dearest, high=1.0,
            ),
            "oracle_gap_closed": oracle_gap_closed(*(float(mean[k]) for mean in means)),
            "parameters": dict(point.parameters),
        }
        for k, (relative, point) in enumerate(zip(RELATIVE_PRICES, method.chosen, strict=True))
    ]  # fmt: skip


def _delta_interval(assessment: Assessment, name: str, point: Point) -> tuple[float, float]:
    """Of the exact match minus that of the full decode; 0 by definition for the full decode."""
    if name == "full":
        return 0.0, 0.0
    delta = point.held_out.exact_match - assessment.full.exact_match
    return mean_interval(assessment.resampling, delta, low=-1.0, high=1.0)


def _summaries(assessment: Assessment) -> list[dict[str, Any]]:
    measure = measure_of(assessment)
    versus = {
        reference: _verdicts(assessment, measure, reference)
        for reference in ("full", *assessment.policies)
    }
    return [
        _summary(assessment, method, measure)
        | {"versus": {r: verdicts[name] for r, verdicts in versus.items() if name in verdicts}}
        for name, method in assessment.methods.items()
    ]


def _verdicts(
    assessment: Assessment, measure: Measure, reference: str
) -> dict[str, dict[str, Any]]:
    """Every method but the bound against one of them.

    In mean oracle gap closed, or in mean utility where there is no gap. The verdict says what the
    method is: ``better`` or ``worse`` than the reference where Holm's correction over these
    comparisons leaves a p-value of at most 0.05, else ``cannot tell``.
    """
    found = {
        name: compared(assessment, [name], [reference])
        for name in assessment.methods
        if name not in (reference, "oracle")
    }
    adjusted = holm([one.p_value for one in found.values()])
    return {
        name: {
            "measure": measure.name,
            "margin": one.difference,
            "margin_ci95": one.interval,
            "p_holm": p,
            "verdict": one.verdict if p <= LEVEL else "cannot tell",
        }
        for (name, one), p in zip(found.items(), adjusted, strict=True)
    }


def _summary(assessment: Assessment, method: Method, measure: Measure) -> dict[str, Any]:
    full = assessment.full
    spots = {f"{loss:g}": method.saving_most(loss) for loss in EM_LOSSES}
    return {
        "method": method.name,
        "kind": method.kind,
        "mean_oracle_gap_closed": gap_closed(assessment, method.name),
        "mean_oracle_gap_closed_ci95": _gap_interval(assessment, method.name, measure),
        "savings_at_em_loss": {
            loss: float(1 - spot.held_out.tokens.mean() / full.tokens.mean())
            for loss, spot in spots.items()
        },
        "held_out_em_loss": {
            loss: float(full.exact_match.mean() - spot.held_out.exact_match.mean())
            for loss, spot in spots.items()
        },
        "held_out_em_loss_ci95": {
            loss: _loss_interval(assessment, spot) for loss, spot in spots.items()
        },
        "parameters_at_em_loss": {loss: dict(spot.parameters) for loss, spot in spots.items()},
    }


def _loss_interval(assessment: Assessment, spot: Point) -> tuple[float, float]:
    """Of the exact match that is lost; 0 by definition where nothing is ever stopped."""
    if dict(spot.parameters) == dict(NEVER):
        return 0.0, 0.0
    lost = assessment.full.exact_match - spot.held_out.exact_match
    return mean_interval(assessment.resampling, lost, low=-1.0, high=1.0)


def _gap_interval(assessment: Assessment, name: str, measure: Measure) -> tuple[float, float]:
    """Over the best constant budget; 0 and 1 by definition for that budget and the oracle."""
    if measure.name == "utility":
        return math.nan, math.nan
    if name in ("fixed", "oracle"):
        return (0.0, 0.0) if name == "fixed" else (1.0, 1.0)
    return compared(assessment, [name], ["fixed"]).interval


def _frontier(method: Method) -> dict[str, Any]:
    """The operating points that the training traces would have one consider."""
    return {
        "method": method.name,
        "kind": method.kind,
        "points": [
            {
                "exact_match": float(point.held_out.exact_match.mean()),
                "tokens": float(point.held_out.tokens.mean()),
                "parameters": dict(point.parameters),
            }
            for point in method.frontier()
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
