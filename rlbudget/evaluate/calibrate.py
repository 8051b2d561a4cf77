"""Calibrate: the cheapest price at which a policy keeps a bound on lost answers, certified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlbudget.errors import UserError
from rlbudget.evaluate.risk import Mode, certify, losses_of
from rlbudget.evaluate.unseen import fitted_to
from rlbudget.policy.folder import Policy, load_policy, make_policy, save_policy
from rlbudget.policy.network import CODE
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import full_stops, outcome
from rlbudget.policy.prices import price_grid
from rlbudget.policy.replay import replay
from rlbudget.traces.store import digest, load_table
from rlbudget.traces.table import TraceTable, split_questions

PRICES = 40
"""settings tried, log-spaced over the policy's prices"""


def calibrate(
    policy_folder: str | Path,
    traces: str | Path,
    out: str | Path,
    *,
    max_em_loss: float = 0.01,
    confidence: float = 0.9,
    mode: Mode = "loss",
    seed: int = 0,
    overwrite: bool = False,
) -> Policy:
    """Write the policy with its certificate to ``out``, and ``policy.py`` where it has one.

    With probability ``confidence`` over the calibration questions, the certified token price
    loses at most ``max_em_loss`` of exact match on questions of the same kind. Calibration
    questions are those of ``traces`` that the policy was neither trained nor chosen on: the
    held-out ones where it was trained on these traces, else all. Raises ``UserError`` where
    nothing can be certified: too few questions, or a policy that loses too much at its lowest
    price.
    """
    policy = load_policy(policy_folder)
    table = calibration_traces(policy, Path(traces))
    certificate = certificate_of(
        policy, table, max_em_loss=max_em_loss, confidence=confidence, mode=mode, seed=seed
    )
    config = policy.config
    certified = make_policy(
        policy.tensors,
        features=policy.features,
        preset=policy.preset,
        price_range=policy.price_range,
        clip=config["clip"],
        threshold=policy.threshold,
        trained=config["trained"],
        calibration={**certificate, "traces": digest(Path(traces))},
    )
    standalone = (Path(policy_folder) / CODE).exists()
    save_policy(out, certified, overwrite=overwrite, standalone=standalone)
    return certified


def calibration_traces(policy: Policy, traces: Path) -> TraceTable:
    """The traces of questions that the policy has not seen."""
    table = load_table(traces, context=True)
    trained = fitted_to(policy)
    if trained.get("digest") != digest(traces):
        return table
    if trained.get("split_seed") is None:
        raise UserError(
            "the policy was trained on these traces but does not say how they were split, so no"
            " question is known to be unseen; calibrate on other traces"
        )
    return split_questions(table, seed=int(trained["split_seed"])).held_out


def certificate_of(
    policy: Policy,
    table: TraceTable,
    *,
    max_em_loss: float,
    confidence: float,
    mode: Mode = "loss",
    seed: int = 0,
) -> dict[str, Any]:
    """The certificate, JSON-ready, with ``token_price``, the highest price certified."""
    prices = price_grid(policy.price_range, PRICES)
    observations = observe(table, policy.features)
    full = outcome(table, full_stops(table))
    losses, tokens = [], []
    for price in prices:
        stopped = replay(policy, table, price, observations).outcome
        losses.append(losses_of(table, full, stopped, mode))
        tokens.append(float(stopped.tokens.mean()))
    found = certify(losses, max_em_loss=max_em_loss, confidence=confidence, mode=mode, seed=seed)
    if found.certified is None:
        raise UserError(
            f"cannot certify: even at its lowest price ({prices[0]:.3g}) the policy loses"
            f" {losses[0].mean():.2%} of exact match on {found.questions} calibration questions,"
            f" which does not show that it loses at most {max_em_loss:.2%}; train for lower"
            " prices or record more questions"
        )
    at = found.certified
    return {
        "mode": mode,
        "max_em_loss": max_em_loss,
        "confidence": confidence,
        "questions": found.questions,
        "tested": len(found.p_values),
        "p_value": found.p_values[at],
        "token_price": prices[at],
        "em_loss": float(losses[at].mean()),
        "savings": 1 - tokens[at] / float(full.tokens.mean()),
    }
