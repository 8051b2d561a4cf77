"""From a policy and traces to a guard in a file: fit, calibrate, measure, draw."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rlbudget.arrays import Float32s
from rlbudget.console import Advance
from rlbudget.errors import UserError
from rlbudget.evaluate.reliability import Allowed, Reliability, draw_reliability, reliability
from rlbudget.evaluate.unseen import fitted_to, split_unseen
from rlbudget.evaluate.verdicts import paired
from rlbudget.policy.folder import load_policy
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import (
    NATURAL_END,
    RELATIVE_PRICES,
    full_stops,
    outcome,
    token_price_of,
)
from rlbudget.policy.prices import nearest_price
from rlbudget.policy.replay import replay as replay_policy
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.strategies.impact import check_risk, fit_impact, guarded, lost_by_stopping
from rlbudget.strategies.impact_file import save_impact
from rlbudget.traces.sampling import load_sample
from rlbudget.traces.store import digest
from rlbudget.traces.table import TraceTable


@dataclass(frozen=True, slots=True)
class Stops:
    """What the stops of a policy did to ``n`` held-out traces."""

    em_lost: float
    """exact match of the full decodes minus that of the stopped ones"""
    em_lost_ci95: tuple[float, float]
    """by question"""
    harm: float
    """share of the traces whose right answer was lost"""
    savings: float
    """1 - tokens / tokens of the full decodes"""
    stopped: float
    """share of the traces that were stopped"""


@dataclass(frozen=True, slots=True)
class AtPrice:
    """A policy without and under its guard at one relative price."""

    relative_price: float
    without: Stops
    guarded: Stops


@dataclass(frozen=True, slots=True)
class FittedGuard:
    """How good a guard is on held-out questions."""

    allowed: Allowed
    questions: tuple[int, int, int]
    """fitted on, calibrated on, held out"""
    reliability: Reliability
    base_brier: float
    """Brier score of always saying the held-out base rate"""
    prices: tuple[AtPrice, ...]
    notes: tuple[str, ...]


def fit_guard(
    policy_folder: Path,
    traces: Path,
    out: Path,
    *,
    max_risk: float = 0.01,
    seed: int = 0,
    progress: Advance | None = None,
) -> FittedGuard:
    """Fit an impact model on a policy's observation and its own training questions.

    It is calibrated on the validation questions and measured on the held-out ones of the split
    that the policy was trained with, or of split seed 0 where it has seen none of these questions;
    held-out questions that it or an ancestor has seen are left out.
    Writes ``out`` (.safetensors) and the reliability diagram beside it (.svg). Raises
    ``UserError`` as ``fit_impact`` does, for a ``max_risk`` out of [0, 1] and for a name of another
    kind.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"the impact model is a .safetensors file, not {out.name}")
    check_risk(max_risk)
    policy = load_policy(policy_folder)
    table = load_sample(traces, context=True).table
    unseen = split_unseen(table, traces, {policy_folder.name: fitted_to(policy)})
    split = unseen.split
    fitted = fit_impact(
        split.train, split.validation, policy.features, seed=seed, progress=progress
    )
    impact = replace(fitted, trained={
        "digest": digest(traces), "split_seed": unseen.seed, "seen": unseen.used,
    })  # fmt: skip
    held_out = split.held_out
    seen, lost = observe(held_out, policy.features), lost_by_stopping(held_out)
    risk, base = impact.risk(seen), float(lost.mean())
    passes = risk <= max_risk
    guard = guarded(policy, impact, max_risk=max_risk)
    prices = []
    for relative in RELATIVE_PRICES:
        told = nearest_price(token_price_of(relative, split.train), policy.price_range)
        both = (_stops(each, held_out, told, seen) for each in (policy, guard))
        prices.append(AtPrice(relative, *both))
    n_fitted, n_calibrated, n_held_out = (
        len(np.unique(part.question_ids)) for part in (split.train, split.validation, held_out)
    )
    lost_there = float(lost[passes].mean()) if passes.any() else 0.0
    result = FittedGuard(
        allowed=Allowed(max_risk, float(passes.mean()), lost_there),
        questions=(n_fitted, n_calibrated, n_held_out),
        reliability=reliability(risk, lost),
        base_brier=base * (1 - base),
        prices=tuple(prices),
        notes=tuple(unseen.notes),
    )
    save_impact(out, impact)
    draw_reliability(result.reliability, out.with_suffix(".svg"), guard=result.allowed)
    return result


def _stops(policy: StopPolicy, table: TraceTable, token_price: float, seen: Float32s) -> Stops:
    full, done = outcome(table, full_stops(table)), replay_policy(policy, table, token_price, seen)
    lost = full.exact_match - done.outcome.exact_match
    return Stops(
        em_lost=float(lost.mean()),
        em_lost_ci95=paired(lost, table.question_ids, most=1.0).interval,
        harm=float((lost > 0).mean()),
        savings=float(1 - done.outcome.tokens.sum() / full.tokens.sum()),
        stopped=float((done.stops != NATURAL_END).mean()),
    )
