"""When to stop drawing samples: a cross-fitted policy against Adaptive-Consistency and ESC.

    python -m runs.quality.sampling [--traces FOLDER] [--n 700] [--only NAME]

On 40 samples of each question of the embedded model (or a recorded folder) and of made-up voters of
known skill (``runs.quality.voters``). What ``rlbudget train`` makes of the training questions
is measured on the held-out ones, over seeded orders of the samples. Its warm members begin as the
best of Adaptive-Consistency, ESC and constant numbers of samples at each price, and it sees the
votes as these rules do.

Every method is set on the training questions to the point that draws least while it loses at most
0.001 of exact match there against all 40 samples; and at each relative price to what is best there.
Those prices are such that a sample costs 0.0005 to 0.0125 of a right answer. Adaptive-Consistency
(0.95) and ESC (5) are also shown as published. A source is a part of the result, so that each can
be measured by itself.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.agents.clone import TriedRule, best_of, named, try_rules
from rlbudget.agents.config import PPOConfig, ensemble_of
from rlbudget.agents.crossfit import train_crossfit
from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.rules import SAMPLING_RULES
from rlbudget.decoding.record_samples import record_samples
from rlbudget.evaluate.measure import Sets, measure_policy, measure_rule
from rlbudget.evaluate.verdicts import Paired, most_utility, paired
from rlbudget.models import load_model
from rlbudget.policy.folder import Policy
from rlbudget.policy.outcomes import (
    RELATIVE_PRICES,
    Outcome,
    full_stops,
    outcome,
    token_price_of,
    utility,
)
from rlbudget.policy.replay import replay
from rlbudget.tasks import load_task
from rlbudget.traces.store import load_table
from rlbudget.traces.table import TraceTable, split_questions, without
from runs.common import parser_of, row, write_part
from runs.quality.voters import POOLS, voted

QUESTIONS = 7
"""seed of the embedded model's questions and samples"""
SAMPLES = 40
HELD_OUT = 4000
"""made-up questions: with 1,000 an interval of utility was as wide as what is to be told"""
ORDERS = 8
"""of each made-up question"""
ALLOWED = 0.001
MARGIN = 0.005
"""utility: half a right answer in a hundred"""
RIVALS = ("fixed-n", "ac-beta", "ac-dirichlet", "esc")
PUBLISHED = {"ac-beta": {"threshold": 0.95}, "esc": {"window": 5.0}}
Found = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Source:
    """Training and held-out questions."""

    name: str
    train: TraceTable
    held_out: TraceTable


def main() -> None:
    """Sample, train, measure, write."""
    parser = parser_of(__doc__, 700)
    parser.add_argument("--only", choices=("embedded", *(pool.name for pool in POOLS)))
    args = parser.parse_args()
    names = [args.only] if args.only else ["embedded", *(pool.name for pool in POOLS)]
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            source = source_of(name, args.traces, args.n, Path(folder))
            began = time.process_time()
            run = Path(folder) / "run"
            questions = len(np.unique(source.train.question_ids))
            train_crossfit(source.train, ensemble_of(PPOConfig(), questions), run)
            seconds = time.process_time() - began
            rows, details = measured(source, policy_of_run(run))
        write_part(
            "sampling", name, rows, **details,
            samples=SAMPLES, relative_prices=list(RELATIVE_PRICES), seed=0, allowed=ALLOWED,
            margin=MARGIN, training_seconds=round(seconds, 1),
            questions={"train": questions,
                       "held_out": len(np.unique(source.held_out.question_ids))},
        )  # fmt: skip


def source_of(name: str, traces: Path | None, n: int, scratch: Path) -> Source:
    """The traces of a source: half of the embedded model's questions train."""
    if name != "embedded":
        (pool,) = (one for one in POOLS if one.name == name)
        train = voted(pool, 250, SAMPLES, ORDERS, seed=1)
        return Source(name, train, voted(pool, HELD_OUT, SAMPLES, ORDERS, seed=3))
    folder = traces or scratch / "traces"
    if traces is None:
        task = load_task("embedded", n=n, seed=QUESTIONS)
        record_samples(load_model("embedded"), task, folder, samples=SAMPLES, seed=QUESTIONS,
                       batch_size=160)  # fmt: skip
    table = load_table(folder)
    split = split_questions(table, seed=0, held_out=0.5)
    return Source(name, without(table, split.held_out), split.held_out)


def measured(source: Source, policy: Policy) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The two rows of a source, and numbers beside them."""
    train, held_out = source.train, source.held_out
    prices = tuple(token_price_of(r, train) for r in RELATIVE_PRICES)
    full = outcome(held_out, full_stops(held_out))
    found = {"full": spot(held_out, full)}
    for rule in (rule for rule in SAMPLING_RULES if rule.name in RIVALS):
        tuned = measure_rule(rule, Sets(train, held_out, prices)).saving_most(ALLOWED)
        found[rule.name] = {**spot(held_out, tuned.held_out), **tuned.parameters}
        if rule.name in PUBLISHED:
            published = rule.outcome(held_out, PUBLISHED[rule.name])
            found[f"{rule.name}, published"] = spot(held_out, published)
    ours = measure_policy("policy", policy, Sets(train, held_out, prices)).saving_most(ALLOWED)
    found["policy"] = {**spot(held_out, ours.held_out), **ours.parameters}
    tried = try_rules(train)
    margins = {
        relative: margin(held_out, tried, policy, price)
        for relative, price in zip(RELATIVE_PRICES, prices, strict=True)
    }
    rows = [fewest(source.name, found), at_every_price(source.name, margins)]
    about = policy.out_of_fold
    assert about is not None
    by_price = {f"{k:g}": {"rival": name, "margin": str(v)} for k, (name, v) in margins.items()}
    return rows, {"methods": found, "by_price": by_price, "doubts": about["doubts"]}


def spot(table: TraceTable, of: Outcome) -> dict[str, float]:
    """Exact match, samples and tokens, means over the traces; tokens tell how many samples."""
    each = np.split(table.thinking_tokens, table.offsets[1:-1])
    drawn = [
        1 + int(np.searchsorted(so_far, spent))
        for so_far, spent in zip(each, of.thinking, strict=True)
    ]
    return {
        "exact_match": float(of.exact_match.mean()),
        "samples": float(np.mean(drawn)),
        "tokens": float(of.tokens.mean()),
    }


def margin(
    held_out: TraceTable, tried: list[TriedRule], policy: Policy, price: float
) -> tuple[str, Paired]:
    """The policy's utility at a price less that of the rival that is best there when held out,
    each rival with the parameters that are best at this price on the training questions."""
    ours = replay(policy, held_out, price).outcome
    rivals = {
        name: best.rule.outcome(held_out, best.parameters)
        for name in RIVALS
        for best in [best_of(named(tried, name), price)]
    }
    name = max(rivals, key=lambda one: float(utility(rivals[one], price).mean()))
    difference = utility(ours, price) - utility(rivals[name], price)
    most = most_utility(price, ours, rivals[name])
    return name, paired(difference, held_out.question_ids, most=most)


def fewest(name: str, found: Found) -> dict[str, Any]:
    """The policy among those that keep the exact match of all samples when held out."""
    needed = found["full"]["exact_match"] - ALLOWED
    shown = {rival: found[rival] for rival in RIVALS}
    keeping = [one["samples"] for one in shown.values() if one["exact_match"] >= needed]
    least, ours = min(keeping, default=float(SAMPLES)), found["policy"]
    return row(
        f"{name}: fewest samples at the exact match of {SAMPLES} samples less {ALLOWED:g}, all"
        " tuned alike on the training questions",
        f"EM >= {needed:.4f} and below {least:.2f} samples, the fewest of a rival that keeps it ("
        + "; ".join(
            f"{rival} {one['samples']:.2f}, EM {one['exact_match']:.4f}"
            for rival, one in shown.items()
        )
        + ")",
        f"EM {ours['exact_match']:.4f}, {ours['samples']:.2f} samples",
        ours["exact_match"] >= needed and ours["samples"] < least,
    )


def at_every_price(name: str, margins: dict[float, tuple[str, Paired]]) -> dict[str, Any]:
    """The policy less the best rival at each relative price."""
    shown = "; ".join(f"{k:g}: {v}, {rival}" for k, (rival, v) in margins.items())
    level = sum(v.verdict != "worse" for _, v in margins.values())
    proven = [v.verdict_at(MARGIN) in ("better", "not inferior") for _, v in margins.values()]
    return row(
        f"{name}: utility less that of the best rival in hindsight, at every relative price",
        f"the whole 95% interval above -{MARGIN:g} at each",
        f"{sum(proven)} of {len(proven)}, 0 within the interval or below it at {level}: {shown}",
        all(proven),
    )


if __name__ == "__main__":
    main()
