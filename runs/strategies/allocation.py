"""A budget of tokens for a batch: one price for all against equal shares and first come, first
served.

    python -m runs.strategies.allocation --traces FOLDER

On questions that the kept policies have not seen (1,800 of the embedded model, 780 of SmolLM2) and
three budgets each, all at equal tokens. *One price*: ``rlbudget/strategies/allocation.py``, its
curve read off other questions, corrected while the batch runs, as ``rlbudget decode --file`` does.
*Equal shares*: the same budget of thinking tokens for each, the largest that the budget allows.
*First come, first served*: full decodes until the rest can only answer at once. *Optimum*: in
hindsight, knowing which stop of each decode is right, on the concave hulls. Writes
``runs/results/allocation.json``.
"""  # fmt: skip

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.arrays import Floats, Ints
from rlbudget.evaluate.verdicts import paired
from rlbudget.policy.folder import Policy, load_policy
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import (
    NATURAL_END,
    Outcome,
    budget_grid,
    fixed_stops,
    full_stops,
    outcome,
)
from rlbudget.policy.replay import replay
from rlbudget.policy.seen import seen_by, texts_of
from rlbudget.strategies.allocation import (
    Batch,
    Curve,
    after_spending,
    next_price,
    optimum,
    outcome_curves,
    spending,
)
from rlbudget.traces.store import digest, iter_questions, load_table
from rlbudget.traces.table import TraceTable, split_questions
from runs.common import KEPT, KEPT_TRACES, ROOT, row, write_result

EMBEDDED = ROOT / "runs" / "models" / "embedded" / "policy_0"
SHARES = {"embedded": (0.45, 0.55, 0.7), "SmolLM2": (0.2, 0.23, 0.26)}
"""of the tokens of full decodes"""
SEED = 0


def main() -> None:
    """Replay, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--traces", type=Path, required=True)
    args = parser.parse_args()
    policy = load_policy(EMBEDDED)
    table = load_table(args.traces)
    if policy.seen is not None:
        texts = texts_of(iter_questions(args.traces, of=table.question_ids))
        table = table.take(np.flatnonzero(~seen_by(policy.seen, table.question_ids, texts)))
    split = split_questions(table, held_out=0.5, seed=SEED)
    rows, details = measured("embedded", policy, split.train, split.held_out)
    smol = split_questions(load_table(KEPT_TRACES), seed=SEED)
    more, details_smol = measured(
        "SmolLM2", load_policy(KEPT / "policy"), smol.validation, smol.held_out
    )
    write_result("allocation", rows + more, seeds=[SEED], traces_digest=digest(args.traces),
                 embedded=details, smollm2=details_smol)  # fmt: skip


def measured(
    name: str, policy: Policy, known: TraceTable, batch: TraceTable
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and details of one model; the curve is read off ``known``."""
    curve = spending(policy, known)
    n = len(batch)
    full = outcome(batch, full_stops(batch))
    order = np.random.default_rng(SEED).permutation(n)
    curves = outcome_curves(batch)
    beats, ways, spends, details = [], [], [], []
    for share in SHARES[name]:
        budget = share * float(full.tokens.sum())
        ours = one_price(policy, batch, curve, budget, order)
        spent = float(ours.tokens.sum())
        # The others get what was spent, so that tokens are equal.
        others = {"equal shares": equal_shares(batch, spent),
                  "first come, first served": first_come(batch, spent, order)}  # fmt: skip
        best, _ = optimum(curves, spent)
        em = float(ours.exact_match.mean())
        won = {key: paired(ours.exact_match - one, batch.question_ids, most=1.0)
               for key, (one, _) in others.items()}  # fmt: skip
        rival = max(float(one.mean()) for one, _ in others.values())
        way = (em - rival) / (best / n - rival)
        told = "; ".join(f"over {key} {found}" for key, found in won.items())
        beats.append((f"{share:.0%}: EM {em:.4f}, {told}",
                      all(one.verdict == "better" for one in won.values())))  # fmt: skip
        ways.append((share, way, em, rival, best / n))
        spends.append((share, spent / budget - 1))
        details.append({
            "share": share, "budget": budget, "spent": spent, "exact_match": em,
            "optimum": best / n, "others": {
                key: {"exact_match": float(one.mean()), "tokens": float(cost)}
                for key, (one, cost) in others.items()}})  # fmt: skip
    rows = [
        row(f"{name}: one price for a batch of {n} questions at equal tokens, 3 budgets",
            "EM above equal shares and first come, first served, with the whole 95% interval",
            "; ".join(text for text, _ in beats), all(met for _, met in beats)),
        row(f"{name}: the way from the better of the two to the optimum in hindsight", ">= 60%",
            "; ".join(f"{share:.0%}: {way:.0%} (EM {rival:.4f} -> {em:.4f} of {best:.4f})"
                      for share, way, em, rival, best in ways),
            all(way >= 0.6 for _, way, *_ in ways)),
        row(f"{name}: what a batch spends against its budget", "within 3%",
            "; ".join(f"{share:.0%}: {over:+.2%}" for share, over in spends),
            all(abs(over) <= 0.03 for _, over in spends)),
    ]  # fmt: skip
    return rows, {"budgets": details, "questions": n}


def one_price(
    policy: Policy, table: TraceTable, curve: Curve, budget: float, order: Ints
) -> Outcome:
    """One request after the other, each at the price of the moment."""
    observations = observe(table, policy.features)
    grid = np.log(curve.prices)
    found = [replay(policy, table, float(p), observations) for p in curve.prices]
    tokens = np.array([one.outcome.tokens for one in found])
    batch = Batch(budget, len(table))
    stops: Ints = np.full(len(table), NATURAL_END, dtype=np.int64)
    for one in order.tolist():
        price = next_price(batch, curve, policy.price_range)
        place = int(np.abs(grid - np.log(price)).argmin())
        stops[one] = found[place].stops[one]
        batch = after_spending(batch, curve, price, float(tokens[place, one]))
    return outcome(table, stops)


def equal_shares(table: TraceTable, budget: float) -> tuple[Floats, float]:
    """The same budget of thinking tokens for each; between two of them by chance, in expectation,
    so that all tokens are spent. Exact match of each, and tokens of all."""  # fmt: skip
    found = [outcome(table, fixed_stops(table, b)) for b in sorted(budget_grid(table))]
    spent = np.array([float(one.tokens.sum()) for one in found])
    above = int(np.flatnonzero(spent >= budget)[0]) if (spent >= budget).any() else len(found) - 1
    below = max(above - 1, 0)
    gap = spent[above] - spent[below]
    share = 1.0 if gap <= 0 else min(max((budget - spent[below]) / gap, 0.0), 1.0)
    mixed = share * found[above].exact_match + (1 - share) * found[below].exact_match
    return mixed, share * spent[above] + (1 - share) * spent[below]


def first_come(table: TraceTable, budget: float, order: Ints) -> tuple[Floats, float]:
    """Full decodes in order until the others can only answer at their first checkpoint."""
    full = outcome(table, full_stops(table))
    first = outcome(table, np.where(table.lengths > 0, 0, NATURAL_END))
    more = np.cumsum((full.tokens - first.tokens)[order])
    served = int((more <= budget - first.tokens.sum()).sum())
    exact_match = first.exact_match.copy()
    exact_match[order[:served]] = full.exact_match[order[:served]]
    return exact_match, float(first.tokens.sum() + (more[served - 1] if served else 0.0))


if __name__ == "__main__":
    main()
