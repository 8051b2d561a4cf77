"""Calibrate: the highest price at which a policy keeps a bound on lost answers, certified."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlbudget.errors import UserError
from rlbudget.evaluate.risk import Certified, Mode, certify, losses_of, questions_needed
from rlbudget.evaluate.unseen import fitted_to
from rlbudget.policy.dial import EFFORTS
from rlbudget.policy.folder import Policy, load_policy, make_policy, save_policy
from rlbudget.policy.network import CODE
from rlbudget.policy.observation import observe
from rlbudget.policy.operating import certified_points, sweep
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
    done = calibrated(
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
        calibration={**done.certificate, "traces": digest(Path(traces))},
        operating_points=done.operating_points,
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


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What calibration questions say of a policy, JSON-ready."""

    certificate: dict[str, Any]
    """``token_price`` is the highest one certified for ``max_em_loss``; ``certified`` lists it and
    what could be certified for the losses of the efforts, each with the confidence by itself"""
    operating_points: dict[str, dict[str, Any]]


def calibrated(
    policy: Policy,
    table: TraceTable,
    *,
    max_em_loss: float,
    confidence: float,
    mode: Mode = "loss",
    seed: int = 0,
) -> Calibrated:
    """Replay a policy on calibration questions; raises ``UserError`` as ``calibrate``."""
    prices = price_grid(policy.price_range, PRICES)
    observations = observe(table, policy.features)
    full = outcome(table, full_stops(table))
    stopped = {price: replay(policy, table, price, observations).outcome for price in prices}
    losses = [losses_of(table, full, stopped[price], mode) for price in prices]
    swept = sweep(table, prices, stopped.__getitem__)

    def walk(loss: float) -> Certified:
        return certify(losses, max_em_loss=loss, confidence=confidence, mode=mode, seed=seed)

    asked = walk(max_em_loss)
    if asked.certified is None:
        raise UserError(
            f"cannot certify: even at its lowest price ({prices[0]:.3g}) the policy loses"
            f" {losses[0].mean():.2%} of exact match on {asked.questions} calibration questions,"
            f" which does not show that it loses at most {max_em_loss:.2%}; train for lower"
            " prices or record more questions"
        )
    needed = {loss: questions_needed(loss, confidence, mode) for loss in EFFORTS.values() if loss}
    walks = {loss: walk(loss) for loss, n in needed.items() if n <= asked.questions}
    walks[max_em_loss] = asked
    found: list[dict[str, Any]] = []
    boldest, p_values = 0, asked.p_values
    for loss, walked in sorted(walks.items()):
        if walked.certified is None and not found:
            continue
        if (walked.certified or 0) >= boldest:  # else what keeps a smaller loss keeps this one
            p_values = walked.p_values
        boldest = max(boldest, walked.certified or 0)
        found.append(
            {
                "max_em_loss": loss,
                "tested": len(walked.p_values),
                "p_value": p_values[boldest],
                "token_price": prices[boldest],
                "em_loss": float(losses[boldest].mean()),
                "savings": swept[boldest].savings,
            }
        )
    own = next(one for one in found if one["max_em_loss"] == max_em_loss)
    certificate = {
        "mode": mode,
        "confidence": confidence,
        "questions": asked.questions,
        **own,
        "certified": found,
    }
    covered = {float(one["max_em_loss"]): float(one["token_price"]) for one in found}
    return Calibrated(certificate, certified_points(swept, asked.questions, covered))
