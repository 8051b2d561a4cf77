"""Cross-validation by question: every question is held out once, policies are trained anew.

In each fold the rules choose their parameters, and the policies are trained with the settings of
the ones given, on the other questions only. What the folds held out is pooled question by
question; a token price is that of its own fold. A question's fold is a hash of its id, so as new
traces arrive the old ones stay in their folds and a rolling window of the latest can be measured.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.logistic import logistic_rule
from rlbudget.agents.rules import Kind, rules_for
from rlbudget.console import Advance
from rlbudget.errors import UserError
from rlbudget.evaluate.bootstrap import resample
from rlbudget.evaluate.evaluation import EM_LOSSES, Assessment, Composition, assess
from rlbudget.evaluate.measure import Point
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import Preset
from rlbudget.policy.outcomes import Outcome
from rlbudget.traces.store import Folders, load_table
from rlbudget.traces.table import Split, TraceTable, split_fold, without


@dataclass(frozen=True, slots=True)
class Pooled:
    """A method over all folds, each fold's choices made on its own training questions."""

    name: str
    kind: Kind
    chosen: tuple[Point, ...]
    spots: Mapping[float, Point]
    """EM loss -> the points that save most in each fold"""

    def saving_most(self, max_em_loss: float) -> Point:
        """The pooled points that save most in training; for the losses of the evaluation only."""
        return self.spots[max_em_loss]

    def frontier(self) -> list[Point]:
        """What it does at each price, cheapest first."""
        return sorted(self.chosen, key=lambda point: float(point.held_out.tokens.mean()))


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
    progress: Advance | None = None,
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
    table = load_table(traces, context=True)
    for fold in range(folds):
        _recent(split_fold(table, fold, folds, seed=seed).held_out, table, last)
    jobs = [
        _Job(traces, fold, folds, last, settings, learners, seed, draws) for fold in range(folds)
    ]
    parts: list[Assessment] = []
    workers = min(folds, processes or os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        if progress is not None:
            progress(0, folds)
        for part in pool.map(_assess_fold, jobs):
            parts.append(part)
            if progress is not None:
                progress(len(parts), folds)
    return pool_assessments(parts, seed=seed, draws=draws)


@dataclass(frozen=True, slots=True)
class _Job:
    """What a process has to do."""

    traces: Folders
    fold: int
    folds: int
    last: int | None
    policies: Mapping[str, Policy | dict[str, Any]]
    """a policy to measure, or the settings to train one with"""
    learners: bool
    seed: int
    draws: int


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
    config = (policy.config.get("trained") or {}).get("config")
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
    progress: Callable[[str], AbstractContextManager[Advance]] | None = None,
) -> Assessment:
    """Assess the rules of the traces' kind, policies, compositions and, if asked for, fitted
    learners.

    ``train`` are training and validation traces together. ``progress`` opens a bar by its title.
    """
    show = progress or _silent
    rules, fitted = list(rules_for(train)), {}
    if learners:
        from rlbudget.evaluate.learners import fit_learners  # needs torch

        presets: list[Preset] = sorted({policy.preset for policy in policies.values()})
        with show("Fitting learners") as advance:
            fitted = fit_learners(split, presets or ["free"], seed=seed, progress=advance)
        rules.append(logistic_rule(train))
    with show("Evaluating") as advance:
        return assess(
            train, split.held_out, policies, rules=rules, learners=fitted,
            compositions=compositions, validation=split.validation, seed=seed, draws=draws,
            progress=advance,
        )  # fmt: skip


@contextmanager
def _silent(title: str) -> Iterator[Advance]:
    yield lambda done, total: None


def _assess_fold(job: _Job) -> Assessment:
    table = load_table(job.traces, context=True)
    split = split_fold(table, job.fold, job.folds, seed=job.seed)
    train = without(table, split.held_out)
    split = replace(split, held_out=_recent(split.held_out, table, job.last))
    policies = {k: policy for k, policy in job.policies.items() if isinstance(policy, Policy)}
    if len(policies) < len(job.policies):
        from rlbudget.agents import ppo  # needs torch and gymnasium

        known = {field.name for field in fields(ppo.PPOConfig)}
        for name, stored in job.policies.items():
            if isinstance(stored, Policy):
                continue
            given = {key: value for key, value in stored.items() if key in known}
            if given.get("token_price") is not None:
                given["token_price"] = tuple(given["token_price"])
            with tempfile.TemporaryDirectory() as run:
                ppo.train(split.train, split.validation, ppo.PPOConfig(**given), Path(run) / "run")
                policies[name] = policy_of_run(Path(run) / "run")
    return assess_split(
        split, train, policies, learners=job.learners, seed=job.seed, draws=job.draws
    )


def pool_assessments(parts: Sequence[Assessment], *, seed: int, draws: int) -> Assessment:
    """One assessment of all that the folds held out."""
    question_ids = np.concatenate([part.question_ids for part in parts])
    lacking: dict[str, tuple[str, ...]] = {}
    for part in parts:
        lacking |= part.not_applicable
    names = [name for name in parts[0].methods if name not in lacking]
    methods = {name: _pooled([part.methods[name] for part in parts]) for name in names}
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
        folds=len(parts),
        parts=tuple(parts),
    )


def _pooled(parts: Sequence[Any]) -> Pooled:
    return Pooled(
        name=parts[0].name,
        kind=parts[0].kind,
        chosen=tuple(
            _joined(points) for points in zip(*(part.chosen for part in parts), strict=True)
        ),
        spots={loss: _joined([part.saving_most(loss) for part in parts]) for loss in EM_LOSSES},
    )


def _joined(points: Sequence[Point]) -> Point:
    parameters = [dict(point.parameters) for point in points]
    same = all(other == parameters[0] for other in parameters)
    return Point(
        parameters[0] if same else {"folds": parameters},
        _together([point.train for point in points]),
        _together([point.held_out for point in points]),
    )


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    columns = ("exact_match", "thinking", "probe", "answer")
    return Outcome(*(np.concatenate([getattr(o, c) for o in outcomes]) for c in columns))
