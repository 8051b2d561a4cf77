"""When to stop drawing samples: PPO against Adaptive-Consistency and ESC on the embedded model.

    python runs/sampling.py [--traces FOLDER] [--n 400]

Draws 40 samples of each question (or takes a recorded folder), splits by question, trains PPO with
three seeds, and measures on the held-out questions, averaged over 20 seeded orders of the samples.

Every method is set on the training questions to the point that draws least while its exact match
there is that of all 40 samples or better; Adaptive-Consistency (0.95) and ESC (5) are also shown
as published.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from results import write_result

from rlbudget.agents.rules import SAMPLING_RULES
from rlbudget.evaluate.measure import measure_policy, measure_rule
from rlbudget.evaluate.outcomes import (
    RELATIVE_PRICES,
    Choice,
    full_stops,
    outcome,
    token_price_of,
)
from rlbudget.evaluate.replay import replay
from rlbudget.freeze import policy_of_run
from rlbudget.models import load_model
from rlbudget.record_samples import record_samples
from rlbudget.store import load_table
from rlbudget.table import TraceTable, split_questions, without
from rlbudget.tasks import load_task
from rlbudget.training import train_on

SEEDS = (0, 1, 2)
SAMPLES = 40
PUBLISHED = {"ac-beta": {"threshold": 0.95}, "ac-dirichlet": {"threshold": 0.95},
             "esc": {"window": 5.0}}  # fmt: skip


def main() -> None:
    """Sample, train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--traces", type=Path, help="a recorded folder; sampled anew if left out")
    parser.add_argument("--n", type=int, default=400, help="questions to sample")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        traces = args.traces or scratch / "traces"
        if args.traces is None:
            task = load_task("embedded", n=args.n, seed=5)
            record_samples(load_model("embedded"), task, traces, samples=SAMPLES, seed=5,
                           batch_size=160)  # fmt: skip
        table = load_table(traces)
        split = split_questions(table, seed=0)
        train = without(table, split.held_out)
        found = {rule.name: tuned_rule(rule, train, split.held_out) for rule in SAMPLING_RULES}
        found |= {
            f"{rule.name}, published": at(
                split.held_out, rule.stops(split.held_out, PUBLISHED[rule.name])
            )
            for rule in SAMPLING_RULES
            if rule.name in PUBLISHED
        }
        for seed in SEEDS:
            train_on(traces, scratch / f"run{seed}", seed=seed)
            policy = policy_of_run(scratch / f"run{seed}")
            found[f"ppo-{seed}"] = tuned_policy(policy, train, split.held_out)
            print(f"ppo-{seed}", found[f"ppo-{seed}"], flush=True)
    full = at(split.held_out, full_stops(split.held_out))
    own = {k: float(np.mean([found[f"ppo-{s}"][k] for s in SEEDS])) for k in full}
    rivals = ("ac-beta", "esc", "ac-beta, published", "esc, published")
    shown = "; ".join(f"{n} {found[n]['samples']:.2f} samples, EM {found[n]['exact_match']:.4f}"
                      for n in rivals)  # fmt: skip
    kept = own["exact_match"] >= full["exact_match"] - 0.001
    fewest = min(found[n]["samples"] for n in ("ac-beta", "esc"))
    write_result(
        "sampling",
        [
            {
                "row": "exact match of 40 samples with fewer samples than Adaptive-Consistency"
                " (Beta) and ESC, mean of 3 seeds",
                "wanted": f"EM >= {full['exact_match']:.4f} (0.001 allowed), fewer than"
                f" {fewest:.2f} samples ({shown})",
                "reached": f"EM {own['exact_match']:.4f}, {own['samples']:.2f} samples",
                "met": bool(kept and own["samples"] < fewest),
            }
        ],
        seeds=list(SEEDS),
        questions={"train": len(np.unique(train.question_ids)),
                   "held_out": len(np.unique(split.held_out.question_ids))},
        orders=20, samples=SAMPLES, full=full, methods=found,
    )  # fmt: skip


def at(table: TraceTable, stops: Choice) -> dict[str, float]:
    """Exact match, samples and tokens of a choice of stops, mean over traces."""
    result = outcome(table, stops)
    drawn = result.tokens
    if np.issubdtype(stops.dtype, np.integer):
        drawn = np.where(stops < 0, SAMPLES, stops + 1).astype(np.float64)
    return {
        "exact_match": float(result.exact_match.mean()),
        "samples": float(drawn.mean()),
        "tokens": float(result.tokens.mean()),
    }


def tuned_rule(rule: Any, train: TraceTable, held_out: TraceTable) -> dict[str, Any]:
    """A rule at its cheapest point without loss on the training questions."""
    prices = [token_price_of(r, train) for r in RELATIVE_PRICES]
    spot = measure_rule(rule, train, held_out, prices).saving_most(0.0)
    if "never_stop" in spot.parameters:
        return {**at(held_out, full_stops(held_out)), "parameters": dict(spot.parameters)}
    stops = rule.stops(held_out, spot.parameters)
    return {**at(held_out, stops), "parameters": dict(spot.parameters)}


def tuned_policy(policy: Any, train: TraceTable, held_out: TraceTable) -> dict[str, Any]:
    """A policy at its cheapest price without loss on the training questions."""
    prices = [token_price_of(r, train) for r in RELATIVE_PRICES]
    spot = measure_policy("ppo", policy, train, held_out, prices).saving_most(0.0)
    if "never_stop" in spot.parameters:
        return {**at(held_out, full_stops(held_out)), "parameters": dict(spot.parameters)}
    stops = replay(policy, held_out, float(spot.parameters["token_price"])).stops
    return {**at(held_out, stops), "parameters": dict(spot.parameters)}


if __name__ == "__main__":
    main()
