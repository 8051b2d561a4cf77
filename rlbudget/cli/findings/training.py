"""What a training found: a table by price, what is odd, and what to do next, in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from rich.table import Table

from rlbudget.agents.rules import probing
from rlbudget.agents.tuned_rule import can_freeze, why_not
from rlbudget.cli.findings.finding import odd, some
from rlbudget.console import plain_table
from rlbudget.evaluate.needed import about, to_tell_apart
from rlbudget.evaluate.verdicts import verdict_of
from rlbudget.signals.text import TEXT_SIGNALS
from rlbudget.traces.agreement import SAID, agrees

TEXT_COSTS = "it reads the text alone; with log-probabilities it would do better (docs/logs.md)"
FEW_TRAINING_QUESTIONS = 200
NOTHING_SAVED = 0.01
SAME = 0.01
"""shares of tokens that differ by less are one"""
POINT = 0.01
TRAINED = 0.7
"""share of recorded questions that a training sees"""


def training_tables(config: Mapping[str, Any]) -> Iterator[tuple[str, Table]]:
    """A heading and a table each, of a trained policy's ``config.json``: percent of tokens saved
    and points of exact match lost."""
    trained = config["trained"]
    found = trained.get("out_of_fold")
    full = float((trained.get("traces") or {}).get("mean_full_tokens") or 0)
    if found:
        head = ("policy saves", "loses, points", "best rule", "saves", "loses, points")
        percent = f"{found['level']:.0%}"
        yield (
            f"What {some(found['questions'], 'training question')} say, each under a policy that"
            f" was not trained on it [{percent} intervals]",
            plain_table(
                ("a right answer is worth", *head),
                [(_worth(row), *_policy(row), *_rule(row)) for row in found["prices"]],
            ),
        )
        yield (
            "Where so much may be lost",
            plain_table(
                ("points", *head[:2], "a rule saves", "loses, points"),
                [
                    (f"{100 * row['max_em_loss']:g}", *_policy(row), *_rule(row)[1:])
                    for row in found["savings"]
                ],
            ),
        )
    elif full:
        rows = (trained.get("validation") or {}).get("prices") or ()
        yield (
            "What the validation questions say",
            plain_table(
                ("a right answer is worth", "policy saves", "exact match"),
                [
                    (
                        f"{full / row['relative_price']:,.0f} tokens",
                        f"{1 - row['tokens'] / full:.0%}",
                        f"{row['exact_match']:.1%}",
                    )
                    for row in rows
                ],
            ),
        )


def _worth(row: Mapping[str, Any]) -> str:
    return f"{1 / row['token_price']:,.0f} tokens"


def _policy(row: Mapping[str, Any], of: str = "") -> tuple[str, str]:
    saved = _with_interval(row[f"{of}savings"], row.get(f"{of}savings_ci90"), ".0f")
    lost = _with_interval(row[f"{of}em_loss"], row.get(f"{of}em_loss_ci90"), ".1f")
    return saved.replace(" ", "% ", 1) if " " in saved else f"{saved}%", lost


def _rule(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(row.get("rule", "")), *_policy(row, "rule_")


def _with_interval(value: float, ends: Sequence[float | None] | None, form: str) -> str:
    """In hundredths; an interval behind its number, nothing where it is not known."""
    low, high = ends or (None, None)
    if low is None or high is None or low == high:
        return _hundredths(value, form)
    return f"{_hundredths(value, form)} [{_hundredths(low, form)}, {_hundredths(high, form)}]"


def _hundredths(value: float, form: str) -> str:
    said = f"{100 * value:{form}}"
    return said.removeprefix("-") if float(said) == 0 else said


def of_training(config: Mapping[str, Any]) -> Iterator[str]:
    """What is odd about a trained policy, by its ``config.json``."""
    trained = config["trained"]
    traces, validation = trained.get("traces") or {}, trained.get("validation") or {}
    gap = validation.get("mean_oracle_gap_closed")
    full = float(traces.get("mean_full_tokens") or 0)
    prices = [row for row in validation.get("prices") or () if full]
    if agrees(traces.get("recorded")):
        yield SAID
    if any(name.partition(".")[0] in TEXT_SIGNALS for name in config["features"]):
        yield TEXT_COSTS
    if gap is None:
        yield odd(
            "no stop is worth more than a constant budget, even in hindsight",
            do="look at the answers (all right?)",
        )
    elif gap <= 0:
        yield odd(
            "it is no better than a constant budget",
            do="record more questions, or try --preset turns",
        )
    if prices:
        yield from _about_stops([row["tokens"] / full for row in prices])
    questions = traces.get("n_train_questions")
    if questions is not None and questions < FEW_TRAINING_QUESTIONS:
        yield odd(
            f"trained on {some(questions, 'question')} only",
            do="another --seed may say otherwise; record more",
        )


def _about_stops(shares: Sequence[float]) -> Iterator[str]:
    """``shares``: tokens at each price over those of the full decodes, prices rising."""
    if min(shares) > 1 - NOTHING_SAVED:
        yield odd(
            "it saves nothing at any price",
            do="train with higher --token-price or on more questions",
        )
    elif len(shares) > 1 and max(shares) - min(shares) < SAME:
        yield odd(
            "it stops at the same places at every price",
            do="train for a wider --token-price",
        )


def next_steps(config: Mapping[str, Any], run: Path) -> Iterator[str]:
    """What to do with a run, in words, and last the command for it."""
    found = config["trained"].get("out_of_fold")
    out = quote(str(run.with_name("policy" if run.name != "policy" else "frozen")))
    freeze = f"rlbudget freeze {quote(str(run))}"
    if not found:
        yield f"Next: {freeze} --out {out}"
        return
    rule, over, questions = found["rule"]["name"], found["over_rule"], found["questions"]
    ends = tuple(math.nan if end is None else end for end in over["ci90"])
    verdict = verdict_of(ends, questions=questions)  # type: ignore[arg-type]
    row = next((row for row in found["savings"] if row["max_em_loss"] == POINT), None)
    saves = {
        what: row is not None and row[f"{of}savings"] > 0 and row[f"{of}em_loss"] <= POINT
        for what, of in (("policy", ""), ("rule", "rule_"))
    }
    if rule == "full":
        yield {
            "better": "The policy is better than decoding in full, which no rule is.",
            "worse": "Decoding in full is better than the policy and every rule: use neither.",
        }.get(verdict, "These questions cannot tell the policy from decoding in full; no rule is"
                       " better.")  # fmt: skip
    elif verdict == "better":
        yield f"The policy is better than the best rule, {rule}."
    elif verdict == "worse":
        yield f"The rule {rule} is better than the policy."
    else:
        simple = _simple(rule, config["preset"])
        yield (
            f"These questions cannot tell the policy from the best rule, {rule}"
            f"{', which is the simpler of both' if simple else ''}."
        )
    if verdict == "cannot tell":
        apart = to_tell_apart(
            {"margin": over["difference"] or 0.0, "margin_ci95": over["ci90"]}, questions
        )
        if apart is not None:
            more = about((apart - questions) / TRAINED)
            yield f"About {more} more recorded questions may tell them apart."
    if not any(saves.values()):
        yield "Neither of them saved tokens and kept the loss within a point."
    if (reason := why_not(rule)) is not None and rule != "full" and verdict != "better":
        yield f"The rule {rule} cannot be frozen: {reason}."
    take = can_freeze(rule) and (
        verdict == "worse" or (verdict == "cannot tell" and _simple(rule, config["preset"]))
    )
    if take:
        yield f"The policy instead: {freeze} --out {out}"
    elif can_freeze(rule) and verdict == "cannot tell":
        yield f"The rule instead: {freeze} --rule {rule} --out {out}"
    if rule == "full" and verdict == "worse":
        yield f"Next: record more questions; to freeze it all the same: {freeze} --out {out}"
        return
    yield f"Next: {freeze}{f' --rule {rule}' if take else ''} --out {out}"


def _simple(rule: str, preset: str) -> bool:
    """Whether a rule is the simpler of the two: it makes no trial answer that the policy does
    not."""
    makes = {one.name for one in probing.RULES}
    return can_freeze(rule) and (rule not in makes or preset != "free")
