"""The free policy for the SmolLM2 reasoner against every rival, on held-out questions.

    python runs/smol_policy.py [--traces runs/smollm2/traces] [--policy runs/smollm2/policy]

PPO, fitted-Q and the exact gradient are trained with three seeds on the same training questions;
every rule's parameters are chosen on the training questions. The first seed's policy is kept in
``--policy``. Writes ``runs/results/smol_policy.json``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.agents.learners import fit_learners
from rlbudget.agents.logistic import logistic_rule
from rlbudget.agents.rules import RULES
from rlbudget.evaluate.evaluation import as_json, assess
from rlbudget.evaluate.outcomes import token_price_of
from rlbudget.freeze import policy_of_run
from rlbudget.policy import save_policy
from rlbudget.store import digest, load_table
from rlbudget.table import split_questions, without
from rlbudget.training import train_on

sys.path.insert(0, str(Path(__file__).parent))
from results import write_result
from rivals import row

SEEDS = (0, 1, 2)
RELATIVE_RANGE = (0.01, 4.0)
"""Prices to train for. With the default range, up to 1, the policy at its highest price still has a
better exact match than the full decodes, on the validation questions as on the held-out ones (76.9%
saved, 3.2 points gained there): what could be given up for more savings lies beyond its end."""
KEPT = Path(__file__).parent / "smollm2"
LEAST = 0.30


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--traces", type=Path, default=KEPT / "traces")
    parser.add_argument("--policy", type=Path, default=KEPT / "policy", help="where it is kept")
    args = parser.parse_args()
    table = load_table(args.traces)
    split = split_questions(table, seed=0)
    train = without(table, split.held_out)
    policies, learners = {}, {}
    low, high = (token_price_of(relative, split.train) for relative in RELATIVE_RANGE)
    prices = (low, high)
    with tempfile.TemporaryDirectory() as scratch:
        for seed in SEEDS:
            run = Path(scratch) / f"ppo-{seed}"
            train_on(args.traces, run, preset="free", token_price=prices, seed=seed)
            policies[f"ppo-{seed}"] = policy_of_run(run)
            for name, learner in fit_learners(split, ("free",), seed=seed).items():
                learners[f"{name}-{seed}"] = learner
            print(f"seed {seed}", file=sys.stderr, flush=True)
    save_policy(args.policy, policies["ppo-0"], overwrite=True)
    assessment = assess(
        train,
        split.held_out,
        policies,
        rules=(*RULES, logistic_rule(train)),
        learners=learners,
        validation=split.validation,
        seed=0,
    )
    found = as_json(assessment)
    rows, details = rows_of(found["summary"])
    write_result(
        "smol_policy", rows,
        reproduce="bash runs/smol_traces.sh", seeds=list(SEEDS),
        traces_digest=digest(args.traces), traces=len(table), full=found["full"],
        held_out_questions=len(np.unique(split.held_out.question_ids)),
        not_applicable={name: list(needs) for name, needs in assessment.not_applicable.items()},
        **details,
    )  # fmt: skip


def rows_of(summary: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the requirement, and every method's savings beside them."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in summary:
        if entry["kind"] != "bound":
            groups.setdefault(entry["method"].rstrip("0123456789").rstrip("-"), []).append(entry)
    spots = {
        name: {
            "saved": float(np.mean([e["savings_at_em_loss"]["0.01"] for e in entries])),
            "held_out_em_loss": float(np.mean([e["held_out_em_loss"]["0.01"] for e in entries])),
            "mean_oracle_gap_closed": float(
                np.mean([e["mean_oracle_gap_closed"] for e in entries])
            ),
        }
        for name, entries in groups.items()
    }
    own = spots["ppo"]
    rivals = {name: spot for name, spot in spots.items() if name not in ("ppo", "full")}
    kept = {name: spot for name, spot in rivals.items() if spot["held_out_em_loss"] <= 0.01}
    best = max(kept, key=lambda name: kept[name]["saved"])
    saved, lost = own["saved"], own["held_out_em_loss"]
    shown = f"{saved:.1%}, {100 * lost:.2f} points lost when held out"
    rows = [
        row("SmolLM2: savings at <= 1 point of EM loss, free preset, all tokens, mean of 3 seeds",
            f">= {LEAST:.0%}", shown, saved >= LEAST and lost <= 0.01),
        row("SmolLM2: the same against every applicable rival that keeps the point when held out"
            f" ({len(kept)} of {len(rivals)} do)",
            f">= {kept[best]['saved']:.1%} ({best})", shown,
            saved >= kept[best]["saved"] and lost <= 0.01),
    ]  # fmt: skip
    return rows, {"methods": spots}


if __name__ == "__main__":
    main()
