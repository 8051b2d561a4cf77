"""What freezing, evaluating and calibrating found, and what is odd about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from rlbudget.cli.findings.finding import odd, some
from rlbudget.console import plain_table
from rlbudget.evaluate.verdicts import Paired
from rlbudget.policy.operating import FEW_QUESTIONS
from rlbudget.signals.tokens import PAID_SIGNALS
from rlbudget.traces.agreement import SAID, agrees

FEW_HELD_OUT_QUESTIONS = 500
NOTHING_SAVED = 0.01
LOSS = "0.01"
"""the operating point of ``evaluation.json`` that was tuned to lose at most one point"""


def of_freezing(config: Mapping[str, Any]) -> Iterator[str]:
    """What was frozen, by its ``config.json``, and what is odd about it."""
    trained = config["trained"]
    traces = trained.get("traces") or {}
    model = (traces.get("recorded") or {}).get("model")
    questions = traces.get("n_train_questions")
    what = f"the rule {trained['rule']}, tuned" if trained.get("rule") else "a policy, trained"
    made = f" on {some(questions, 'question')}" if questions is not None else ""
    looked = {feature.partition(".")[0] for feature in config["features"]}
    aside = config["preset"] == "free" and looked & set(PAID_SIGNALS)
    pays = "it looks at the exit at checkpoints" if aside else _PAYS[config["preset"]]
    yield f"{what}{made}{f' of {model}' if model else ''}; {pays}"
    gap = (trained.get("validation") or {}).get("mean_oracle_gap_closed")
    if gap is None or gap <= 0:
        yield odd(
            "it was not shown to be better than a constant budget",
            do="evaluate before you serve it",
        )
    yield from of_points(config.get("operating_points"))


_PAYS = {
    "free": "it makes no trial answers",
    "turns": "it makes trial answers at turns of thought",
    "probe": "it makes trial answers at checkpoints",
}


def efforts_table(points: Mapping[str, Mapping[str, Any]]) -> Table:
    """What efforts mean, by the questions that chose their prices: points of exact match lost and
    percent of tokens saved."""  # fmt: skip
    head = ("effort", "may lose, points", "lost", "saved")
    return plain_table(head, [_effort(name, point) for name, point in points.items()])


def _effort(name: str, point: Mapping[str, Any]) -> tuple[str, str, str, str]:
    certified = " (certified)" if point["certified"] else ""
    may = f"{100 * point['max_em_loss']:g}{certified}"
    if not point["token_price"]:
        return name, may, "never stops", "0%"
    return name, may, f"{100 * point['em_loss'] + 0.0:.1f}", f"{point['savings']:.0%}"


def of_points(points: Mapping[str, Mapping[str, Any]] | None) -> Iterator[str]:
    """What is odd about the operating points."""
    if not points:
        yield odd(
            "no operating points, so no --effort", do="finish the run with rlbudget train --resume"
        )
        return
    questions = next(iter(points.values()))["questions"]
    never = [effort for effort, point in points.items() if not point["token_price"]]
    if questions < FEW_QUESTIONS:
        yield odd(
            f"the efforts stand on {some(questions, 'question')} only",
            do="record more, or calibrate on others",
        )
    elif len(never) > 1:
        yield odd(
            f"{', '.join(never)} decode in full, as {some(questions, 'question')} are too few",
            do="record more",
        )


def of_evaluation(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """What is odd about an evaluation, by what ``evaluation.json`` holds."""
    for row in evaluation["summary"]:
        if row["kind"] == "learned" and row["held_out_em_loss"][LOSS] > 2 * float(LOSS):
            yield odd(
                f"{row['method']}, tuned to lose a point, lost"
                f" {100 * row['held_out_em_loss'][LOSS]:.1f} when held out",
                do="take a bound: rlbudget calibrate",
            )
    yield from _about_held_out(evaluation)


def _about_held_out(evaluation: Mapping[str, Any]) -> Iterator[str]:
    n, exact_match = evaluation["held_out_questions"], evaluation["full"]["exact_match"]
    if exact_match in (0, 1) and not agrees(evaluation):
        yield odd(
            f"the full decodes are all {'right' if exact_match else 'wrong'}",
            do="check the scorer, or record harder questions"
            if exact_match
            else "compare answers and targets; this evaluation says nothing",
        )
    elif n < FEW_HELD_OUT_QUESTIONS:
        half = 196 * math.sqrt(exact_match * (1 - exact_match) / n)
        yield odd(
            f"{some(n, 'held-out question')} leave exact match uncertain by {half:.1f} points",
            do=f"hold out {FEW_HELD_OUT_QUESTIONS}: record more",
        )


def over_the_best(what: str, ahead: Sequence[Paired], questions: int) -> str:
    """At how many prices a way of using several models is better than the best of them alone."""
    told = [each.verdict for each in ahead]
    return (
        f"Of {len(told)} prices the {what} is better than the best model alone at"
        f" {told.count('better')}, worse at {told.count('worse')};"
        f" {questions:,} questions cannot tell at {told.count('cannot tell')}."
    )


def of_certificate(certificate: Mapping[str, Any], price_range: Sequence[float]) -> Iterator[str]:
    """What is odd about a certificate of ``rlbudget calibrate``."""
    if agrees(certificate):
        yield SAID
    if certificate["savings"] < NOTHING_SAVED:
        yield odd(
            "at the certified price nothing is saved",
            do="allow a greater --max-em-loss, or calibrate on more questions",
        )
    if certificate["token_price"] >= price_range[1] * (1 - 1e-9):
        yield odd(
            f"the bound holds up to the policy's highest price, {price_range[1]:.3g}",
            do="more could be saved: train for higher --token-price",
        )
