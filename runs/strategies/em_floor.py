"""Training to a floor under exact match or to a budget of tokens: where it lands when held out.

    python -m runs.strategies.em_floor [--traces FOLDER] [--n 7200]

The floor is two points below the full decodes of the training and validation questions. The
budget is 70% of their tokens, for SmolLM2 20%: its policies spend a quarter of the tokens at any
price, since more would cost answers, so only a smaller budget is a constraint at all. Three seeds
each, the free preset. Tokens vary by three quarters of their mean from question to question: the
embedded model is measured on twice as many as elsewhere. Where there are kept traces of the SmolLM2
reasoner, they are measured as well. Writes ``runs/results/em_floor.json``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.training import train_on
from rlbudget.evaluate.verdicts import mean_interval
from rlbudget.policy.bootstrap import resample
from rlbudget.policy.replay import replay
from rlbudget.traces.store import digest, load_table
from rlbudget.traces.table import split_questions, without
from runs.common import parser_of, row, sources, write_result

SEEDS = (0, 1, 2)
BELOW_FULL = 0.02
OF_FULL = {"embedded": 0.7, "SmolLM2": 0.2}


def main() -> None:
    """Train, replay, write."""
    args = parser_of(__doc__, n=7200).parse_args()
    rows: list[dict[str, Any]] = []
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for name, traces in sources(args, scratch).items():
            found, details[name] = measured(name, traces, scratch)
            rows += found
    write_result(
        "em_floor",
        rows,
        reproduce="bash runs/strategies/strategies.sh",
        seeds=list(SEEDS),
        **details,
    )


def measured(name: str, traces: Path, scratch: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and details of one recording."""
    table = load_table(traces)
    split = split_questions(table, seed=0)
    known, held_out = without(table, split.held_out), split.held_out
    floor = round(float(known.final_exact_match.mean()) - BELOW_FULL, 3)
    budget = float(round(OF_FULL[name] * known.full_tokens.mean()))
    landed: dict[str, list[float]] = {"em": [], "em_tokens": [], "tokens": [], "tokens_em": []}
    weights, ends = resample(held_out.question_ids, draws=4000, seed=0), []
    for seed in SEEDS:
        for kind, wanted in (("em", {"em_floor": floor}), ("tokens", {"token_budget": budget})):
            run = scratch / f"{name}-{kind}-{seed}"
            train_on(traces, run, seed=seed, **wanted)  # type: ignore[arg-type]
            policy = policy_of_run(run)
            done = replay(policy, held_out, policy.default_price).outcome
            if kind == "em":
                ends.append(mean_interval(weights, done.exact_match, low=0.0, high=1.0))
            em, tokens = float(done.exact_match.mean()), float(done.tokens.mean())
            landed[kind].append(em if kind == "em" else tokens)
            landed["em_tokens" if kind == "em" else "tokens_em"].append(
                tokens if kind == "em" else em
            )
    full_off = float(held_out.final_exact_match.mean() - known.final_exact_match.mean())
    over = np.array(landed["tokens"]) / budget - 1
    rows = [
        row(f"{name}: --em-floor {floor:g}, exact match on held-out questions, each of"
            f" {len(SEEDS)} seeds", f"within 0.01 of {floor:g}, with the whole 95% interval",
            ", ".join(f"{value:.4f}" for value in landed["em"])
            + f" (the full decodes of these questions are {full_off:+.4f} off those trained on;"
            f" at most {max(map(max, ends)):.4f} and at least {min(map(min, ends)):.4f} with 95%)",
            min(map(min, ends)) >= floor - 0.01 and max(map(max, ends)) <= floor + 0.01),
        row(f"{name}: --token-budget {budget:g}, tokens on held-out questions, each of"
            f" {len(SEEDS)} seeds", f"within 3% of {budget:g}",
            ", ".join(f"{value:.1f} ({share:+.1%})"
                      for value, share in zip(landed["tokens"], over, strict=True)),
            bool((np.abs(over) <= 0.03).all())),
    ]  # fmt: skip
    details = {
        "traces_digest": digest(traces),
        "held_out_questions": len(np.unique(held_out.question_ids)),
        "held_out_full": {
            "exact_match": float(held_out.final_exact_match.mean()),
            "tokens": float(held_out.full_tokens.mean()),
        },
        "floor": floor,
        "budget": budget,
        **landed,
    }
    return rows, details


if __name__ == "__main__":
    main()
