"""From a policy and a folder of traces to a correction and what it does on held-out questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlbudget.arrays import Floats, Strs
from rlbudget.evaluate.unseen import fitted_to, split_unseen
from rlbudget.evaluate.verdicts import Paired, most_utility, paired
from rlbudget.policy.folder import Policy
from rlbudget.policy.outcomes import utility
from rlbudget.policy.replay import replay
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.signals.questions import CONTEXT_SIGNALS
from rlbudget.strategies.correction.correct import (
    Aim,
    Corrected,
    Correction,
    correct,
    doubts_of,
    tune,
)
from rlbudget.strategies.correction.doubt import (
    doubts_in_turn,
    exit_features,
    exit_table,
    fit_doubt,
)
from rlbudget.strategies.impact import ImpactModel
from rlbudget.traces.table import Split, TraceTable, joined

MOST_EXTRA = 0.1
"""extra tokens, as a share of those that the stops save"""


@dataclass(frozen=True, slots=True)
class Doubts:
    """A doubt model, and what it says of the questions that corrections are tuned on."""

    model: ImpactModel
    tuning: TraceTable
    """training and validation questions"""
    of_tuning: Floats
    """(m,) their doubts, by models that have not seen the question"""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A correction and its effect on questions that nothing was chosen on."""

    correction: Correction
    held_out: Corrected
    questions: Strs
    """(n,) those of the held-out traces"""
    token_price: float

    @property
    def utility_gained(self) -> Paired:
        """Utility with it minus without, at its price."""
        done, price = self.held_out, self.token_price
        gained = utility(done.outcome, price) - utility(done.before, price)
        most = most_utility(price, done.outcome, done.before, done.full)
        return paired(gained, self.questions, most=most)

    def lines(self) -> list[str]:
        """What it is and what it does, for a reader."""
        plan, done = self.correction, self.held_out
        if plan.off:
            return [
                f"OFF at token price {self.token_price:.3g}: no threshold gains utility on the"
                " training and validation questions."
            ]
        on = "to the natural end" if plan.budget is None else f"for {plan.budget} tokens"
        times = f", {plan.rounds} times at most" if plan.rounds > 1 else ""
        then = f"withdrawn and the thinking continued {on}{times}"
        if plan.second is not None:
            then = "handed to the second model"
        what = f"An exit with a doubt above {plan.threshold:.3f} is {then}."
        gained = self.utility_gained
        worth = {"better": "worth it", "worse": "not worth it"}.get(
            gained.verdict, "too few questions to tell whether it is worth it"
        )
        low, high = gained.interval
        recovered = f"{done.recovered.sum()} of {done.lost.sum()} lost answers recovered"
        saved = f", {done.share_of_saved:.1%} of those that the stops save"
        if plan.second is not None:  # it repairs what the full decode of the first has wrong too
            repaired = (done.outcome.exact_match > done.before.exact_match).sum()
            recovered, saved = f"{repaired} wrong answers repaired", " (of the first model)"
        return [
            what,
            f"On {len(np.unique(self.questions))} held-out questions: {recovered},"
            f" {done.broken.sum()} right answers broken, {(done.resumed > 0).sum()} exits"
            " withdrawn.",
            f"Extra tokens: {done.extra_tokens.sum():.0f}{saved};"
            f" {done.gained_per_100_tokens:+.3g} answers gained per 100 of them.",
            f"Exact match {done.before.exact_match.mean():.4f} ->"
            f" {done.outcome.exact_match.mean():.4f}, utility {gained.difference:+.4f}"
            f" [{low:+.4f}, {high:+.4f}] at token price {self.token_price:.3g}: {worth}.",
        ]


def fit_doubts(
    split: Split,
    policy: StopPolicy,
    *,
    second: tuple[Floats, Floats] | None = None,
    seed: int = 0,
) -> Doubts:
    """Fit on the training questions; the doubts of the validation questions are the model's own.

    The split is of an ``exit_table``. With a ``second`` model, whose exact match on the training
    and on the validation traces it is, (n,) each, the question's own numbers are looked at too.
    """
    features = exit_features(split.train)
    if second is not None:
        features += CONTEXT_SIGNALS
    train, validation = split.train, split.validation
    model = fit_doubt(train, validation, policy, features, second=second, seed=seed)
    in_turn = doubts_in_turn(train, validation, policy, features, second=second, seed=seed)
    return Doubts(
        model,
        joined([split.train, split.validation]),
        np.concatenate([in_turn, doubts_of(model, split.validation)]),
    )


def fit_correction(
    policy: Policy,
    traces: Path | str,
    *,
    token_price: float,
    most_extra: float = MOST_EXTRA,
    aim: Aim = "utility",
    seed: int = 0,
) -> Fitted:
    """Fit and tune on training and validation questions, measure on the held-out ones.

    The split is the policy's own, without held-out questions that it has seen. Raises ``UserError``
    for too few questions.
    """
    split = own_split(policy, traces)
    doubts = fit_doubts(split, policy, seed=seed)
    done = replay(policy, doubts.tuning, token_price)
    correction = tune(
        doubts.model, done, doubts.of_tuning, token_price, most_extra=most_extra, aim=aim
    )
    held_out = replay(policy, split.held_out, token_price)
    measured = correct(correction, held_out)
    return Fitted(correction, measured, split.held_out.question_ids, token_price)


def own_split(policy: Policy, traces: Path | str) -> Split:
    """The ``exit_table`` of a folder in three parts, of which the policy has not seen the last.

    Raises ``UserError`` as ``split_unseen`` does.
    """
    return split_unseen(exit_table(traces), traces, {"the policy": fitted_to(policy)}).split
