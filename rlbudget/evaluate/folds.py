"""Cross-validation by question: every question is held out once, policies are trained anew.

In each fold the rules choose their parameters, and the policies are trained with the settings of
the ones given, on the other questions only. What the folds held out is pooled question by
question; a token price is that of its own fold. A question's fold is a hash of its id, so as new
traces arrive the old ones stay in their folds and a rolling window of the latest can be measured.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.agents.config import PPOConfig
from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.logistic import logistic_rule
from rlbudget.agents.rules import rules_for
from rlbudget.agents.zelt import zelt_rule
from rlbudget.console import Advance, quiet
from rlbudget.errors import UserError
from rlbudget.evaluate.evaluation import Assessment, as_json, assess
from rlbudget.evaluate.measure import Composition, pooled
from rlbudget.policy.bootstrap import resample
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import Preset
from rlbudget.traces.sampling import MOST_MEASURED, load_sample
from rlbudget.traces.store import Folders
from rlbudget.traces.table import Split, TraceTable, joined, split_fold, without

SPREAD = {
    "results": ("exact_match", "token_fraction", "utility", "oracle_gap_closed"),
    "summary": ("mean_oracle_gap_closed", "savings_at_em_loss", "held_out_em_loss"),
}
"""the numbers of ``evaluation.json`` whose spread over the folds is reported"""


def assess_folds(
    traces: Folders,
    policies: Mapping[str, Policy],
    *,
    folds: int,
    last: int | None = None,
    as_they_are: bool = False,
    learners: bool = False,
    seed: int = 0,
    draws: int = 2000,
    processes: int | None = None,
    progress: Advance = quiet,
) -> Assessment:
    """Assess on every fold, in parallel processes of one thread each, and pool.

    ``last`` measures on so many of the latest traces only, in the order of their folders; the
    others are still learned from. ``as_they_are`` measures the policies given instead of training
    them anew: for traces they have not seen. Raises ``UserError`` for fewer than two folds, too few
    questions, and a policy that does not say how it was trained.
    """
    settings: dict[str, Policy | dict[str, Any]] = {
        name: policy if as_they_are else _settings(name, policy)
        for name, policy in policies.items()
    }
    table = load_sample(traces, context=True, most=MOST_MEASURED).table
    for fold in range(folds):
        _recent(split_fold(table, fold, folds, seed=seed).held_out, table, last)
    assess_fold = partial(
        _assess_fold, traces, settings,
        folds=folds, last=last, learners=learners, seed=seed, draws=draws,
    )  # fmt: skip
    parts: list[Assessment] = []
    workers = min(folds, processes or os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        progress(0, folds)
        for part in pool.map(assess_fold, range(folds)):
            parts.append(part)
            progress(len(parts), folds)
    return pool_assessments(parts, seed=seed, draws=draws)


def _recent(held_out: TraceTable, table: TraceTable, last: int | None) -> TraceTable:
    """Those among the last traces of the table."""
    if last is None:
        return held_out
    if last < 1:
        raise UserError(f"the last {last} traces: it must be at least 1")
    recent = np.isin(held_out.trace_ids, table.trace_ids[-last:])
    if not recent.any():
        raise UserError(f"a fold holds none of the last {last} traces: take more, or fewer folds")
    return held_out.take(np.flatnonzero(recent))


def _settings(name: str, policy: Policy) -> dict[str, Any]:
    trained = policy.config.get("trained") or {}
    config = trained.get("config")
    if not config and trained.get("rule"):
        raise UserError(
            f"policy {name} is a frozen rule, and folds tune every rule anew: leave it out, or add"
            " --as-they-are"
        )
    if not config:
        raise UserError(f"policy {name} does not say how it was trained: it has no folds")
    return dict(config)


def assess_split(
    split: Split,
    train: TraceTable,
    policies: Mapping[str, Policy],
    *,
    learners: bool,
    seed: int,
    draws: int,
    compositions: Sequence[Composition] = (),
    show: Callable[[str], AbstractContextManager[Advance]] = lambda title: nullcontext(quiet),
) -> Assessment:
    """Assess rules, policies, compositions and, if asked for, learners fitted here.

    The rules are those of the traces' kind. ``train`` are training and validation traces together.
    ``show`` opens a progress bar by its title.
    """
    rules, fitted = list(rules_for(train)), {}
    if learners:
        from rlbudget.evaluate.learners import fit_learners  # needs torch

        presets: list[Preset] = sorted({policy.preset for policy in policies.values()})
        with show("Fitting learners") as advance:
            fitted = fit_learners(split, presets or ["free"], seed=seed, progress=advance)
        rules += [logistic_rule(train), zelt_rule(train, seed=seed)]
    with show("Evaluating") as advance:
        return assess(
            train, split.held_out, policies, rules=rules, learners=fitted,
            compositions=compositions, validation=split.validation, seed=seed, draws=draws,
            progress=advance,
        )  # fmt: skip


def _assess_fold(
    traces: Folders,
    policies: Mapping[str, Policy | dict[str, Any]],
    fold: int,
    *,
    folds: int,
    last: int | None,
    learners: bool,
    seed: int,
    draws: int,
) -> Assessment:
    """``policies`` are policies to measure, or the settings to train one with."""
    table = load_sample(traces, context=True, most=MOST_MEASURED).table
    split = split_fold(table, fold, folds, seed=seed)
    train = without(table, split.held_out)
    split = replace(split, held_out=_recent(split.held_out, table, last))
    given = {
        name: policy if isinstance(policy, Policy) else _trained(policy, split)
        for name, policy in policies.items()
    }
    return assess_split(split, train, given, learners=learners, seed=seed, draws=draws)


def _trained(settings: Mapping[str, Any], split: Split) -> Policy:
    from rlbudget.agents import crossfit, ppo  # need torch and gymnasium

    known = {field.name for field in fields(PPOConfig)}
    given = {key: value for key, value in settings.items() if key in known}
    if given.get("token_price") is not None:
        given["token_price"] = tuple(given["token_price"])
    with tempfile.TemporaryDirectory() as folder:
        run, config = Path(folder) / "run", PPOConfig(**given)
        if config.members > 1:
            crossfit.train_crossfit(joined([split.train, split.validation]), config, run)
        else:
            ppo.train(split.train, split.validation, config, run)
        return policy_of_run(run)


def pool_assessments(parts: Sequence[Assessment], *, seed: int, draws: int) -> Assessment:
    """One assessment of all that the folds held out."""
    question_ids = np.concatenate([part.question_ids for part in parts])
    lacking = {name: needs for part in parts for name, needs in part.not_applicable.items()}
    names = [name for name in parts[0].methods if name not in lacking]
    methods = {name: pooled([part.methods[name] for part in parts]) for name in names}
    return replace(
        parts[0],
        question_ids=question_ids,
        train_questions=round(float(np.mean([part.train_questions for part in parts]))),
        token_prices=tuple(
            np.concatenate(prices)
            for prices in zip(*(part.token_prices for part in parts), strict=True)
        ),
        methods=methods,
        not_applicable=lacking,
        resampling=resample(question_ids, draws=draws, seed=seed),
        parts=tuple(parts),
    )


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
    for place, names in SPREAD.items():
        found = [{_key(row): row for row in part[place]} for part in parts]
        for row in evaluation[place]:
            same = [rows[_key(row)] for rows in found]
            row["over_folds"] = {name: _spread([one[name] for one in same]) for name in names}


def _key(row: Mapping[str, Any]) -> tuple[str, float | None]:
    return row["method"], row.get("relative_price")


def _spread(values: Sequence[Any]) -> dict[str, Any]:
    if isinstance(values[0], dict):
        return {name: _spread([value[name] for value in values]) for name in values[0]}
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "std": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "each": list(values),
    }
