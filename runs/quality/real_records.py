"""Repeated cross-validation on a real record that the project did not make (GPQA, Gemma 12B).

    python -m runs.quality.real_records [--units FILE] [--numbers 10 20] [--report]

The record's 198 questions fall into five folds, anew for every assignment; everything is trained
and tuned on four folds and measured on the fifth, the folds pooled. A unit, one fold, is added to
``--units`` as it is made, and units that are there are not made again, so a run may be ended and
gone on with; ``--report`` makes none and reports those there are. Assignments 0 to 2 chose the
method (``agents.members``, ``agents.doubt``) and are left out by default. The record is not in the
repository (``shared/data/gpqa`` beside it): its numbers are, its data never.
Writes ``runs/results/real_records.json``.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.arrays import Floats
from rlbudget.policy.outcomes import RELATIVE_PRICES
from runs.common import OUT, row, write_result
from runs.quality.cuts import folds, gaps, make, record_of, units_in

FOLDS = 5
OWN = ("ensemble", "one ppo", "oracle", "fitted-q", "exact-pg")


def main() -> None:
    """Make units, put them together, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--units", type=Path, default=OUT / "cuts" / "gpqa.jsonl")
    parser.add_argument("--numbers", type=int, nargs=2, default=(10, 20), help="of assignments")
    parser.add_argument("--rivals", action="store_true", help="fitted-Q and exact gradient, too")
    parser.add_argument("--report", action="store_true", help="make no more units")
    args = parser.parse_args()
    if not args.report:
        table, made = record_of("gpqa", Path()), units_in(args.units)
        for cut in folds("gpqa", table, "probe", range(*args.numbers)):
            make(cut, args.units, made, with_rivals=args.rivals)
    units = [one for one in units_in(args.units).values() if one.get("source") == "gpqa"]
    each = pooled(units)
    found = {name: np.array([of[name] for of in each]) for name in (each[0] if each else ())}
    write_result(
        "real_records",
        rows_of(found, len(each)),
        assignments=len(each),
        folds=FOLDS,
        questions=units[0]["size"] if units else 0,
        preset="probe",
        relative_prices=list(RELATIVE_PRICES),
        mean_gap_closed={name: float(of.mean()) for name, of in found.items()},
        gap_closed_by_price={name: of.mean(axis=0).tolist() for name, of in found.items()},
        gap_closed_by_assignment={name: of.mean(axis=1).tolist() for name, of in found.items()},
    )


def pooled(units: list[dict[str, Any]]) -> list[dict[str, Floats]]:
    """Of each whole assignment, the gap closed at each price by every method, folds pooled."""
    by_number = defaultdict(list)
    for unit in units:
        by_number[unit["number"]].append(unit)
    found = []
    for number in sorted(by_number):
        of = by_number[number]
        if len(of) == FOLDS:
            sums = {
                name: np.sum([unit["utility"][name] for unit in of], axis=0)
                for name in of[0]["utility"]
                if all(name in unit["utility"] for unit in of)
            }
            found.append({name: gaps(sums, name) for name in sums})
    return found


def rows_of(found: dict[str, Floats], assignments: int) -> list[dict[str, Any]]:
    """The rows of the result; a rule may be the best in hindsight, in each assignment anew."""
    if not assignments:
        return [row("GPQA, assignments measured", "10", "0", met=False)]
    own = found["ensemble"]
    rules = {name: of for name, of in found.items() if name not in OWN}
    best = max(rules, key=lambda name: float(rules[name].mean()))
    highest = np.max([of.mean(axis=1) for of in rules.values()], axis=0)
    ahead = int((own.mean(axis=1) > highest).sum())
    at = own.mean(axis=0)
    least = np.maximum(np.maximum(rules[best].mean(axis=0) - 0.01, 0), found["full"].mean(axis=0))
    shown = ", ".join(
        f"{price:g}: {mine:.3f} ({bound:.3f})"
        for price, mine, bound in zip(RELATIVE_PRICES, at, least, strict=True)
    )
    others = "".join(
        f", {name} {found[name].mean():.3f}" for name in ("fitted-q", "exact-pg") if name in found
    )
    few = "" if assignments >= 10 else f" ({assignments} assignments only)"
    return [
        row(
            "GPQA, 10 assignments to folds, mean gap closed, preset probe",
            ">= .25, and above the best rule in hindsight in 10 of 10",
            f"{own.mean():.3f}{few}; above in {ahead} of {assignments}; best rule ({best})"
            f" {rules[best].mean():.3f}, one PPO {found['one ppo'].mean():.3f}{others}",
            bool(own.mean() >= 0.25 and ahead == assignments >= 10),
        ),
        row(
            "the same at every one of the six prices, mean of 10",
            ">= best rule - .01, >= 0 and >= never stopping (in brackets)",
            shown + few,
            bool((at >= least).all() and assignments >= 10),
        ),
    ]


if __name__ == "__main__":
    main()
