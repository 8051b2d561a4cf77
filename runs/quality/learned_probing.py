"""Paying for a look only where it is worth it, against the presets that never or always pay.

    python -m runs.quality.learned_probing [--traces FOLDER] [--n 3600] [--only NAME]

PPO in the presets ``free`` (never looks), ``probe`` (at every checkpoint), ``turns`` (at turns of
thought) and ``look`` (chooses), a single policy each, on the same training questions, at every
relative price on the same held-out ones. On the embedded model; on GPQA's record where it is at
hand, five folds pooled, its trial answers charged at 5, 20 and 100 tokens; and on made-up traces
whose best policy is known: there only a trial answer tells right from wrong, and only some
checkpoints are worth one. A source is a part of ``runs/results/learned_probing.json``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.ppo import PPOConfig, train
from rlbudget.arrays import Floats
from rlbudget.evaluate.verdicts import Verdict, most_utility, paired
from rlbudget.policy.observation import Preset
from rlbudget.policy.outcomes import (
    RELATIVE_PRICES,
    Outcome,
    concatenated,
    token_price_of,
    utility,
)
from rlbudget.policy.replay import replay
from rlbudget.signals.looks import TURNS
from rlbudget.traces.columns import table_of
from rlbudget.traces.store import load_table
from rlbudget.traces.table import Split, TraceTable, split_questions
from runs.common import parser_of, recorded, row, write_part
from runs.quality.cuts import GPQA, folds, record_of
from tests.shared.synthetic import puzzle

CHARGES = (5, 20, 100)
"""tokens of a trial answer on GPQA's record"""
VALIDATION = 0.15
WAYS: tuple[Preset, ...] = ("free", "probe", "turns", "look")
NAMES = ("embedded", *(f"gpqa-{charge}" for charge in CHARGES), "made-up")


def main() -> None:
    """Record, train, measure, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", choices=NAMES)
    args = parser.parse_args()
    for name in [args.only] if args.only else NAMES:
        if name.startswith("gpqa") and not GPQA.is_file():
            continue
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            splits = splits_of(name, args.traces, args.n, scratch)
            turns = bool({*TURNS} & {*splits[0].train.signals})
            ways = tuple(way for way in WAYS if way != "turns" or turns)
            found = measure(splits, ways, scratch)
        write_part(
            "learned_probing", name, [verdict(name, found)],
            seed=0, relative_prices=list(RELATIVE_PRICES), **found,
        )  # fmt: skip


def splits_of(name: str, traces: Path | None, n: int, scratch: Path) -> list[Split]:
    """One split of a source, or five folds."""
    if name == "made-up":
        return [split_questions(table_of([puzzle(k) for k in range(1200)]), seed=0)]
    if name == "embedded":
        return [split_questions(load_table(recorded(traces, scratch, n)), seed=0)]
    table = charged(record_of("gpqa", scratch), int(name.removeprefix("gpqa-")))
    found = []
    for cut in folds("gpqa", table, "free", range(1)):
        questions = np.unique(cut.train.question_ids)
        drawn = np.random.default_rng(cut.fold).permutation(questions)
        chosen = np.isin(cut.train.question_ids, drawn[: round(VALIDATION * len(drawn))])
        own, validation = (cut.train.take(np.flatnonzero(rows)) for rows in (~chosen, chosen))
        found.append(Split(own, validation, cut.held_out))
    return found


def charged(table: TraceTable, tokens: int) -> TraceTable:
    """The same traces, each trial answer of so many tokens."""
    return replace(table, probe_tokens=np.where(table.probe_tokens > 0, tokens, 0))


def measure(splits: Sequence[Split], ways: Sequence[Preset], scratch: Path) -> dict[str, Any]:
    """Utilities and tokens of looks by preset and relative price, on all held-out traces."""
    given: dict[str, list[list[Outcome]]] = {way: [[] for _ in RELATIVE_PRICES] for way in ways}
    worth: dict[str, list[list[Floats]]] = {way: [[] for _ in RELATIVE_PRICES] for way in ways}
    for number, split in enumerate(splits):
        for way in ways:
            run = scratch / f"{way}-{number}"
            train(split.train, split.validation, PPOConfig(preset=way), run)
            policy = policy_of_run(run)
            for place, relative in enumerate(RELATIVE_PRICES):
                price = token_price_of(relative, split.train)
                one = replay(policy, split.held_out, price).outcome
                given[way][place].append(one)
                worth[way][place].append(utility(one, price))
            print(run.name, flush=True)
    questions = np.concatenate([split.held_out.question_ids for split in splits])
    price_of = [token_price_of(relative, splits[0].train) for relative in RELATIVE_PRICES]
    margins, intervals, verdicts, better = [], [], list[Verdict](), list[str]()
    for place, price in enumerate(price_of):
        each = {way: np.concatenate(worth[way][place]) for way in ways}
        best = max((way for way in ways if way != "look"), key=lambda way: float(each[way].mean()))
        every = [concatenated(given[way][place]) for way in ways]
        found = paired(each["look"] - each[best], questions, most=most_utility(price, *every))
        better.append(best)
        margins.append(found.difference)
        intervals.append(found.interval)
        verdicts.append(found.verdict)
    means = {w: [float(np.concatenate(one).mean()) for one in worth[w]] for w in ways}
    looks = {w: [float(concatenated(one).probe.mean()) for one in given[w]] for w in ways}
    return {"utility": means, "look_tokens": looks, "best_other": better, "margin": margins,
            "margin_ci95": intervals, "verdict": verdicts,
            "held_out_questions": len(np.unique(questions))}  # fmt: skip


def verdict(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """One row of the table."""
    each = zip(
        RELATIVE_PRICES, found["margin"], found["margin_ci95"], found["best_other"], strict=True
    )
    shown = ", ".join(
        f"{p:g}: {m:+.4f} [{low:+.4f}, {high:+.4f}] {best}" for p, m, (low, high), best in each
    )
    better = sum(one == "better" for one in found["verdict"])
    return row(
        f"{name}: utility of the look preset less the best of the others at that price",
        "above 0 at every relative price, with the whole 95% interval",
        f"proven better at {better} of {len(RELATIVE_PRICES)}: {shown}",
        better == len(RELATIVE_PRICES),
    )


if __name__ == "__main__":
    main()
