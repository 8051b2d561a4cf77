"""The spread over folds of what an evaluation reports: each number, in each fold by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlbudget.evaluate.bootstrap import resample
from rlbudget.evaluate.evaluation import Assessment, as_json

RESULTS = ("exact_match", "token_fraction", "utility", "oracle_gap_closed")
SUMMARY = ("mean_oracle_gap_closed", "savings_at_em_loss", "held_out_em_loss")


def add_spread(evaluation: dict[str, Any], folds: Sequence[Assessment]) -> None:
    """Give each row of ``results`` and ``summary`` its ``over_folds``.

    There stand, by the number's name, its ``mean`` and ``std`` (sample standard deviation, null for
    one fold) over the folds in which it is known, and ``each`` of them, null where it is not.
    """
    # Intervals are not wanted here: one draw of the bootstrap is enough.
    parts = [
        as_json(replace(fold, resampling=resample(fold.question_ids, draws=1, seed=fold.seed)))
        for fold in folds
    ]
    for row in evaluation["results"]:
        key = ("method", "relative_price")
        same = [_row(part["results"], row, key) for part in parts]
        row["over_folds"] = {name: _spread([one[name] for one in same]) for name in RESULTS}
    for row in evaluation["summary"]:
        same = [_row(part["summary"], row, ("method",)) for part in parts]
        row["over_folds"] = {name: _spread([one[name] for one in same]) for name in SUMMARY}


def _row(
    rows: Sequence[Mapping[str, Any]], like: Mapping[str, Any], key: Sequence[str]
) -> Mapping[str, Any]:
    return next(row for row in rows if all(row[name] == like[name] for name in key))


def _spread(values: Sequence[Any]) -> dict[str, Any]:
    if isinstance(values[0], dict):
        return {name: _spread([value[name] for value in values]) for name in values[0]}
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "std": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "each": list(values),
    }
