"""Measure the embedded model on fresh reserved questions with its own samples.

    python -m runs.models.reasoner.measure [--n 1000] [--seed 9001] [--temperature T]

Records full decodes with an exit at every checkpoint (the library's own recorder), replays them
and writes ``runs/results/reasoner.json``; the same object is the last line of the output.

- *first answer*: the exit at the first checkpoint at or after the end of the first "so N." in
  the thinking; the natural end where no checkpoint follows it.
- *right later*: wrong at the first answer, right at a later checkpoint or at the natural end.
- *lost or long paid for*: some exit is right, and the natural end is wrong or costs at least
  twice the tokens of the first right exit.
- *oracle at natural EM*: per question the cheapest right end, else the cheapest.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from typing import Any

import numpy as np

from rlbudget.arrays import Ints
from rlbudget.decoding.record import record
from rlbudget.models import load_model
from rlbudget.policy.outcomes import (
    NATURAL_END,
    best_budget,
    fixed_stops,
    oracle_gap_closed,
    oracle_stops,
    outcome,
    token_price_of,
    utility,
)
from rlbudget.tasks.load import load_task
from rlbudget.traces.columns import table_of
from rlbudget.traces.store import load_traces
from rlbudget.traces.table import TraceTable
from rlbudget.traces.trace import Trace
from runs.common import write_result

FIRST = re.compile(r" so -?\d+\.")
RELATIVE_PRICE = 0.1


def main() -> None:
    """Record, replay, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--n", type=int, default=1000, help="measured questions")
    parser.add_argument("--others", type=int, default=500, help="questions to choose a budget on")
    parser.add_argument("--seed", type=int, default=9001)
    parser.add_argument("--temperature", type=float, help="the profile's if left out")
    parser.add_argument("--name", default="reasoner", help="of the file in runs/results")
    args = parser.parse_args()
    model = load_model(args.model, profile="embedded")
    task = load_task("embedded", n=args.n + args.others, seed=args.seed)
    with tempfile.TemporaryDirectory() as folder:
        record(
            model, task, folder, temperature=args.temperature, seed=args.seed, probe_tokens=0,
            store_text=True,
        )  # fmt: skip
        of_question = {trace.question_id: trace for trace in load_traces(folder)}
    traces = [of_question[question.question_id] for question in task.questions]
    measured, others = traces[: args.n], traces[args.n :]
    rows, details = properties(measured, table_of(others))
    write_result(
        args.name, rows,
        reproduce="bash runs/models/reasoner.sh",
        seed=args.seed, questions=args.n, other_questions=args.others,
        temperature=measured[0].meta["temperature"], stride=measured[0].meta["stride"],
        max_tokens=measured[0].meta["max_tokens"],
        **details,
    )  # fmt: skip


def first_answer_stops(traces: list[Trace]) -> Ints:
    """The checkpoint of each trace at which its first answer has been stated, (n,)."""
    stops = np.full(len(traces), NATURAL_END, dtype=np.int64)
    for i, trace in enumerate(traces):
        stated = FIRST.search(trace.meta["thinking"])
        if stated:
            cuts = np.asarray(trace.meta["cuts"], dtype=np.int64)
            after = np.flatnonzero(cuts >= stated.end())
            stops[i] = after[0] if len(after) else NATURAL_END
    return stops


def properties(
    traces: list[Trace], others: TraceTable
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the requirement, and numbers beside them."""
    table = table_of(traces)
    natural = table.final_exact_match.astype(bool)
    thinking = table.final_thinking_tokens.astype(np.float64)
    full = table.full_tokens.astype(np.float64)
    free = outcome(table, oracle_stops(table, 1e-9))
    first_stops = first_answer_stops(traces)
    first = outcome(table, first_stops)

    right_later = np.zeros(len(traces), dtype=bool)
    long_paid = np.zeros(len(traces), dtype=bool)
    for i, trace in enumerate(traces):
        exits = np.array([c.exit.exact_match for c in trace.checkpoints], dtype=bool)
        stop = int(first_stops[i])
        later = exits[stop + 1 :].any() if stop != NATURAL_END else False
        right_later[i] = not first.exact_match[i] and (later or (stop >= 0 and natural[i]))
        if exits.any():
            early = trace.checkpoints[int(np.argmax(exits))]
            paid = early.thinking_tokens + early.exit.answer_tokens
            long_paid[i] = not natural[i] or full[i] >= 2 * paid

    price = token_price_of(RELATIVE_PRICE, others)
    means = {
        "fixed": utility(outcome(table, fixed_stops(table, best_budget(others, price))), price),
        "oracle": utility(outcome(table, oracle_stops(table, price)), price),
        "first": utility(first, price),
        "full": utility(outcome(table, np.full(len(table), NATURAL_END)), price),
    }
    at_price = {name: float(values.mean()) for name, values in means.items()}
    closed = oracle_gap_closed(at_price["first"], at_price["fixed"], at_price["oracle"])
    share = float(free.tokens.sum() / full.sum())
    variation = float(thinking.std() / thinking.mean())
    rows = [
        _row("natural exact match", ">= 0.80", natural.mean(), natural.mean() >= 0.80),
        _row("mean thinking tokens", ">= 60", thinking.mean(), thinking.mean() >= 60),
        _row("coefficient of variation of thinking tokens", ">= 0.4", variation, variation >= 0.4),
        _row("share of the tokens the oracle uses at natural EM or better", "<= 0.50", share,
             share <= 0.5 and free.exact_match.mean() >= natural.mean()),
        _row("share wrong at the first answer and right later", ">= 0.15", right_later.mean(),
             right_later.mean() >= 0.15),
        _row("share right early and lost, or long paid for", ">= 0.15", long_paid.mean(),
             long_paid.mean() >= 0.15),
        _row("oracle gap closed by stopping at the first answer, relative price 0.1", "< 0.70",
             closed, closed < 0.7),
    ]  # fmt: skip
    families = sorted({trace.meta["family"] for trace in traces})
    of = {f: np.array([trace.meta["family"] == f for trace in traces]) for f in families}
    details = {
        "exact_match": {
            "natural": float(natural.mean()),
            "first_answer": float(first.exact_match.mean()),
            "oracle": float(free.exact_match.mean()),
        },
        "families": {
            family: {
                "natural": float(natural[mask].mean()),
                "first_answer": float(first.exact_match[mask].mean()),
                "thinking_tokens": float(thinking[mask].mean()),
            }
            for family, mask in of.items()
        },
        "tokens": {"thinking": float(thinking.mean()), "total": float(full.mean())},
        "unfinished": float(np.mean([not trace.meta["natural"] for trace in traces])),
        "utility_at_relative_price_0.1": at_price,
    }
    return rows, details


def _row(name: str, wanted: str, reached: float, met: bool) -> dict[str, Any]:
    return {"row": name, "wanted": wanted, "reached": round(float(reached), 4), "met": bool(met)}


if __name__ == "__main__":
    main()
