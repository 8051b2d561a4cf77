"""Calibrate: the highest price at which a policy keeps a bound on lost answers, certified."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.errors import UserError
from rlbudget.evaluate.risk import Certified, Mode, certify, losses_of, questions_needed
from rlbudget.policy.dial import EFFORTS
from rlbudget.policy.folder import Policy, load_policy, make_policy, save_policy
from rlbudget.policy.network import CODE
from rlbudget.policy.observation import observe
from rlbudget.policy.operating import certified_points, sweep
from rlbudget.policy.outcomes import full_stops, outcome
from rlbudget.policy.prices import price_grid
from rlbudget.policy.replay import replay
from rlbudget.policy.seen import (
    Marks,
    Texts,
    as_text,
    in_order,
    marks_of,
    one_id_each,
    seen_by,
    texts_of,
)
from rlbudget.traces.agreement import FIELD
from rlbudget.traces.compared import compared_with
from rlbudget.traces.sampling import load_sample
from rlbudget.traces.store import digest, iter_questions
from rlbudget.traces.table import TraceTable

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
    overwrite: bool = False,
) -> Policy:
    """Write the policy with its certificate to ``out``, and ``policy.py`` where it has one.

    With probability ``confidence`` over the calibration questions, the certified token price
    loses at most ``max_em_loss`` of exact match on questions of the same kind. Calibration
    questions are those of ``traces`` that neither the policy nor one it was made from has seen
    (``policy.seen``), by their ids and their texts. ``out`` has seen them afterwards: its
    operating points are chosen on them. Raises ``UserError`` where nothing can be certified: too
    few questions, or a policy that loses too much at its lowest price.
    """
    policy = load_policy(policy_folder)
    unseen = calibration_questions(policy, Path(traces))
    done = calibrated(
        policy, unseen.table, max_em_loss=max_em_loss, confidence=confidence, mode=mode,
        texts=unseen.texts, left_out=unseen.left_out,
    )  # fmt: skip
    config, compared = policy.config, compared_with(traces)
    certified = make_policy(
        policy.tensors,
        features=policy.features,
        preset=policy.preset,
        price_range=policy.price_range,
        clip=config["clip"],
        threshold=policy.threshold,
        trained=config["trained"],
        calibration={
            **done.certificate,
            **({} if compared is None else {FIELD: compared}),
            "left_out": unseen.left_out,
            "traces": digest(Path(traces)),
            "seen": as_text(unseen.marks),
        },
        operating_points=done.operating_points,
        seen=policy.made_with,
    )
    standalone = (Path(policy_folder) / CODE).exists()
    save_policy(out, certified, overwrite=overwrite, standalone=standalone)
    return certified


@dataclass(frozen=True, slots=True)
class Unseen:
    """The part of a folder of traces that a policy has not seen."""

    table: TraceTable
    """with the signals of the questions; questions of the same text have one id"""
    texts: Texts
    left_out: int
    """questions that it has seen"""
    marks: Marks
    """of the questions of ``table``"""


def calibration_questions(policy: Policy, traces: Path) -> Unseen:
    """The traces of questions that nothing about a policy was made with.

    Raises ``UserError`` for a policy that does not say what it has seen, and where nothing is left.
    """
    if policy.seen is None:
        raise UserError(
            "the policy does not say which questions it was made with, so none is known to be"
            " unseen: train and freeze it with rlbudget"
        )
    table = load_sample(traces, context=True).table
    texts = texts_of(iter_questions(traces, of=table.question_ids))
    seen = seen_by(policy.seen, table.question_ids, texts)
    left_out = len(np.unique(one_id_each(table.question_ids[seen], texts)))
    if seen.all():
        raise UserError(
            f"{traces}: the policy, or one that it was made from, has seen all"
            f" {left_out} questions (in training, validation, a contest or a calibration): none is"
            " left to certify on; record others"
        )
    left = table.take(np.flatnonzero(~seen))
    marks = marks_of(left.question_ids, texts)
    left = replace(left, question_ids=one_id_each(left.question_ids, texts))
    return Unseen(left, texts, left_out, marks)


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
    texts: Texts | None = None,
    left_out: int = 0,
) -> Calibrated:
    """Replay a policy on calibration questions, bet on in an order by the hash of their ``texts``.

    ``left_out`` is how many were seen before, for the message. Raises ``UserError`` as
    ``calibrate``.
    """
    prices = price_grid(policy.price_range, PRICES)
    observations = observe(table, policy.features)
    full = outcome(table, full_stops(table))
    stopped = {price: replay(policy, table, price, observations).outcome for price in prices}
    order = in_order(np.unique(table.question_ids), texts or {})
    losses = [losses_of(table, full, stopped[price], mode)[order] for price in prices]
    swept = sweep(table, prices, stopped.__getitem__)

    def walk(loss: float) -> Certified:
        return certify(losses, max_em_loss=loss, confidence=confidence, mode=mode)

    try:
        asked = walk(max_em_loss)
    except UserError as error:
        aside = f"; {left_out} that the policy has seen are left out" if left_out else ""
        raise UserError(f"{error}{aside}") from None
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
