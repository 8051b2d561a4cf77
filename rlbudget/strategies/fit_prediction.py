"""From a policy and traces to a prediction in a file: how likely the answer of a stop is right.

A gateway that steers the price to a floor under exact match predicts it by this between verdicts
(``[price] predictor``). It is the doubt of ``correction/doubt.py`` in the policy's own observation,
which every engine has at a stop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rlbudget.arrays import Floats
from rlbudget.evaluate.reliability import Reliability, reliability
from rlbudget.evaluate.unseen import fitted_to, split_unseen
from rlbudget.policy.folder import load_policy
from rlbudget.policy.observation import observe
from rlbudget.strategies.correction.doubt import fit_doubt, stop_chances
from rlbudget.strategies.impact_file import save_impact
from rlbudget.traces.sampling import load_sample
from rlbudget.traces.store import digest


@dataclass(frozen=True, slots=True)
class FittedPrediction:
    """What was fitted, as it is on held-out questions where the policy stops."""

    questions: tuple[int, int, int]
    """fitted on, calibrated on, measured on"""
    reliability: Reliability
    """of the chance that the answer is wrong"""
    predicted: float
    """mean exact match of the stops, as it is predicted"""
    exact_match: float
    """and as it is"""


def fit_prediction(
    policy_folder: Path, traces: Path, out: Path, *, seed: int = 0
) -> FittedPrediction:
    """Fit, measure, save. Raises ``UserError`` for traces whose exits are all right or all
    wrong, and as ``fit_doubt`` does."""  # fmt: skip
    policy = load_policy(policy_folder)
    table = load_sample(traces, context=True).table
    unseen = split_unseen(table, traces, {policy_folder.name: fitted_to(policy)})
    split = unseen.split
    model = fit_doubt(split.train, split.validation, policy, policy.features, seed=seed)
    model = replace(model, trained={
        "digest": digest(traces), "split_seed": unseen.seed, "seen": unseen.used,
        "predicts": "wrong",
    })  # fmt: skip
    held_out = split.held_out
    weights: Floats = stop_chances(policy, held_out)
    drawn = np.random.default_rng(seed).choice(
        len(weights), len(weights), p=weights / weights.sum()
    )
    wrong = held_out.exit_exact_match[drawn] == 0
    doubt = model.risk(observe(held_out, policy.features)[drawn])
    save_impact(out, model)
    return FittedPrediction(
        tuple(len(np.unique(part.question_ids))  # type: ignore[arg-type]
              for part in (split.train, split.validation, held_out)),
        reliability(doubt, wrong), float(1 - doubt.mean()), float(1 - wrong.mean()),
    )  # fmt: skip
