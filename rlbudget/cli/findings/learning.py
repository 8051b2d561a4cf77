"""What training, freezing, evaluating and calibrating found, and what is odd about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlbudget.agents.tuned_rule import can_freeze
from rlbudget.cli.findings.finding import odd, some
from rlbudget.evaluate.verdicts import Paired, verdict_of
from rlbudget.policy.operating import FEW_QUESTIONS, promised
from rlbudget.signals.text import TEXT_SIGNALS
from rlbudget.traces.agreement import SAID, agrees

TEXT_COSTS = (
    "the policy reads the text alone, no log-probabilities: where these can be had a policy of"
    " them closes more of the gap (by how much on our models: docs/logs.md)"
)

FEW_TRAINING_QUESTIONS = 200
FEW_HELD_OUT_QUESTIONS = 500
NOTHING_SAVED = 0.01
SAME = 0.01
"""shares of tokens that differ by less are one"""
LOSS = "0.01"
"""the operating point of ``evaluation.json`` that is shown: tuned to lose at most one point"""


def of_training(config: Mapping[str, Any]) -> Iterator[str]:
    """A trained policy, by its ``config.json``, on its validation questions."""
    trained = config["trained"]
    traces, validation = trained.get("traces") or {}, trained.get("validation") or {}
    gap = validation.get("mean_oracle_gap_closed")
    full = float(traces.get("mean_full_tokens") or 0)
    prices = [row for row in validation.get("prices") or () if full]
    found = trained.get("out_of_fold")
    closed = "no gap to close" if gap is None else f"{gap:.2f} of the oracle's gap closed"
    if found:
        yield from _out_of_fold(found, closed)
    else:
        yield f"on the validation questions: {closed}, mean over the prices"
    if agrees(traces.get("recorded")):
        yield SAID
    if any(name.partition(".")[0] in TEXT_SIGNALS for name in config["features"]):
        yield TEXT_COSTS
    if prices:
        yield "; ".join(_at_price(row, full) for row in prices)
    questions = traces.get("n_train_questions")
    if gap is None:
        yield odd(
            "no stop earns more than the best constant budget, even in hindsight",
            do="there is nothing to learn on these traces: look at their exact match (all right,"
            " all wrong?) and at the number of their checkpoints",
        )
    elif gap <= 0:
        yield odd(
            "the policy is no better than the best constant budget",
            do="record more questions, or try --preset probe; do not serve it before evaluate"
            " says that it is worth it",
        )
    if prices:
        yield from _about_stops([row["tokens"] / full for row in prices])
    if questions is not None and questions < FEW_TRAINING_QUESTIONS:
        yield odd(
            f"trained on {some(questions, 'question')} only",
            do="results on so few change with the seed: record more, or compare several --seed",
        )


def _out_of_fold(found: Mapping[str, Any], closed: str) -> Iterator[str]:
    """What the training questions say, each asked by members that were not trained on it."""
    rule, over = found["rule"], found["over_rule"]
    yield (
        f"out of fold on {some(found['questions'], 'training question')}: {closed}"
        f"{_interval(found['oracle_gap_closed_ci90'], '.2f')}, mean over the prices; the best rule"
        f" ({rule['name']}) closes {_share(rule['oracle_gap_closed'])}"
        f"{_interval(rule['oracle_gap_closed_ci90'], '.2f')}"
    )
    for row in found["savings"]:
        yield (
            f"where {100 * row['max_em_loss']:g} points may be lost: saves {row['savings']:.0%}"
            f"{_interval(row['savings_ci90'], '.0%')} and loses {100 * row['em_loss'] + 0.0:.1f}"
            f"{_interval(row['em_loss_ci90'], '.1%')}; a rule saves {row['rule_savings']:.0%} and"
            f" loses {100 * row['rule_em_loss'] + 0.0:.1f}"
        )
    verdict = verdict_of(
        tuple(math.nan if end is None else end for end in over["ci90"]),  # type: ignore[arg-type]
        questions=found["questions"],
    )
    apart = f"{_share(over['difference'])}{_interval(over['ci90'], '+.2f')}"
    if verdict == "better":
        yield f"the policy is better than the rule {rule['name']}: by {apart} of the gap"
        return
    what = "these questions cannot tell the policy from" if verdict == "cannot tell" else (
        "the policy is worse than"
    )  # fmt: skip
    yield odd(
        f"{what} the rule {rule['name']}: {apart} of the gap",
        do=f"record more questions to tell them apart, or serve the rule, which rlbudget freeze"
        f" --rule {rule['name']} makes a policy of"
        if can_freeze(rule["name"])
        else "record more questions to tell them apart",
    )


def _share(value: float | None) -> str:
    return "nothing" if value is None else f"{value + 0.0:.2f}"


def _interval(ends: Sequence[float | None], form: str) -> str:
    """An interval at 90% behind its number; nothing where it is not known."""
    low, high = ends
    return "" if low is None or high is None else f" [{low:{form}} to {high:{form}}]"


def _at_price(row: Mapping[str, Any], full: float) -> str:
    saved = 1 - row["tokens"] / full
    return (
        f"relative price {row['relative_price']:g}: exact match {row['exact_match']:.1%},"
        f" {saved:.0%} saved"
    )


def _about_stops(shares: Sequence[float]) -> Iterator[str]:
    """``shares``: tokens at each price over those of the full decodes, prices rising."""
    if min(shares) > 1 - NOTHING_SAVED:
        yield odd(
            "the policy saves nothing at any price",
            do="it never stops, or its exits cost what they save: train with higher"
            " --token-price, for longer, or on more questions",
        )
    elif len(shares) > 1 and max(shares) - min(shares) < SAME:
        yield odd(
            "the policy stops at the same places at every price",
            do="the price is no dial then: train for a wider range of --token-price or on more"
            " signals",
        )


def of_freezing(config: Mapping[str, Any]) -> Iterator[str]:
    """What was frozen, by its ``config.json``."""
    traces = config["trained"].get("traces") or {}
    model = (traces.get("recorded") or {}).get("model")
    low, high = config["price_range"]
    questions = traces.get("n_train_questions")
    made = f", trained on {some(questions, 'question')}" if questions is not None else ""
    yield (
        f"a {config['preset']} policy on {len(config['features'])} features, for token prices"
        f" {low:.3g} to {high:.3g}{made}{f' of {model}' if model else ''}"
    )
    gap = (config["trained"].get("validation") or {}).get("mean_oracle_gap_closed")
    if gap is None or gap <= 0:
        yield odd(
            "its validation does not show it to be better than a constant budget",
            do="evaluate it before it decides anything",
        )
    yield from of_points(config.get("operating_points"))


def of_points(points: Mapping[str, Mapping[str, Any]] | None) -> Iterator[str]:
    """What efforts mean, by the questions that chose their prices."""
    if not points:
        yield odd(
            "no operating points: the run did not come to its end, or is of an older rlbudget",
            do="finish it with rlbudget train --resume, or train again, to serve by --effort",
        )
        return
    for effort, point in points.items():
        yield f"effort {effort}: {promised(point)}"
    questions = next(iter(points.values()))["questions"]
    never = [effort for effort, point in points.items() if not point["token_price"]]
    if questions < FEW_QUESTIONS:
        yield odd(
            f"the operating points stand on {some(questions, 'question')} only",
            do="record more questions, or calibrate on others, before you rely on an effort",
        )
    elif len(never) > 1:
        yield odd(
            f"{some(questions, 'question')} do not show that {' and '.join(never)} would"
            " lose no more than they may",
            do="they decode in full: record more questions, or calibrate on others",
        )


def of_evaluation(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """An evaluation, by what ``evaluation.json`` holds."""
    yield from evaluation.get("recommendation") or ()
    summaries = {row["method"]: row for row in evaluation["summary"]}
    learned = [row for row in summaries.values() if row["kind"] == "learned"]
    rules = [row for row in summaries.values() if row["kind"] == "rule"]
    for row in learned:
        loss = row["held_out_em_loss"][LOSS]
        yield (
            f"{row['method']}: {_gap(row)} of the oracle's gap closed; where one point may be lost"
            f" it saves {row['savings_at_em_loss'][LOSS]:.1%} and exact match changes by"
            f" {-100 * loss + 0.0:+.1f} points"
        )
    best = max(rules, key=_closed, default=None)
    if best is not None:
        yield f"the best rule is {best['method']}: {_gap(best)} of the gap closed"
    for row in learned:
        if best is not None and _closed(row) < _closed(best):
            yield odd(
                f"{row['method']} closes less of the gap than the rule {best['method']}",
                do="train on more questions, or serve the rule",
            )
        if row["held_out_em_loss"][LOSS] > 2 * float(LOSS):
            yield odd(
                f"{row['method']}, tuned to lose one point, loses"
                f" {100 * row['held_out_em_loss'][LOSS]:.1f} when held out",
                do="take a bound that holds: rlbudget calibrate",
            )
    yield from _about_held_out(evaluation)


def _about_held_out(evaluation: Mapping[str, Any]) -> Iterator[str]:
    n, exact_match = evaluation["held_out_questions"], evaluation["full"]["exact_match"]
    if exact_match in (0, 1) and not agrees(evaluation):
        yield odd(
            f"the full decodes are all {'right' if exact_match else 'wrong'}",
            do="compare answers and targets: an evaluation of these says nothing",
        )
    elif n < FEW_HELD_OUT_QUESTIONS:
        half = 196 * math.sqrt(exact_match * (1 - exact_match) / n)
        yield odd(
            f"{some(n, 'held-out question')} leave exact match uncertain by {half:.1f} points to"
            " each side",
            do=f"hold out {FEW_HELD_OUT_QUESTIONS} (record more) before you trust a difference"
            " of a point or two",
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


def _closed(row: Mapping[str, Any]) -> float:
    gap = row["mean_oracle_gap_closed"]
    return float("-inf") if gap is None else float(gap)


def _gap(row: Mapping[str, Any]) -> str:
    gap = row["mean_oracle_gap_closed"]
    return "nothing" if gap is None else f"{round(gap, 2) + 0.0:.2f}"
