"""A cross-fitted ensemble: from training questions to a run folder that holds one policy.

All training questions train: they fall into folds, two small members leave each fold out
(``rlbudget.agents.members``), and the frozen policy is the network whose logits are the means of
theirs, less a doubt where stopping was not shown to pay (``rlbudget.agents.doubt``). On the fold
that they left out they say what the policy is worth (``rlbudget.agents.out_of_fold``), and
``freeze`` chooses operating points by that.

A training is of minutes at most and gives the same weights each time, so ``resume`` begins one that
was interrupted again and leaves a finished one as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.agents.config import PPOConfig
from rlbudget.agents.crossfit_log import EnsembleLog
from rlbudget.agents.curves import open_log
from rlbudget.agents.doubt import Doubts, choose_doubts, doubtful, gains, relative_weights
from rlbudget.agents.freeze import RUN, read_run
from rlbudget.agents.frozen_rules import save_rules
from rlbudget.agents.members import (
    Fold,
    Member,
    best_members,
    fold_of_traces,
    make_folds,
    merged,
    train_members,
)
from rlbudget.agents.monitor import Progress
from rlbudget.agents.out_of_fold import OutOfFold, estimate, play_of, relative_prices
from rlbudget.agents.ppo import TrainResult, training_columns
from rlbudget.agents.snapshot import check_same, describe, save_best, save_run
from rlbudget.agents.together import Actor
from rlbudget.agents.validation import SMALLEST_GAP, bounds, estimated
from rlbudget.arrays import Ints
from rlbudget.envs.replay_core import ReplayColumns
from rlbudget.errors import UserError
from rlbudget.files.folders import locked
from rlbudget.policy.operating import sweep
from rlbudget.policy.outcomes import operating_prices
from rlbudget.policy.seen import NONE, Marks, as_text, marks_of, together
from rlbudget.traces.table import TraceTable

_SAVED = 10
"""times in a training that what there is is saved"""


def train_crossfit(
    table: TraceTable,
    config: PPOConfig,
    run_dir: Path,
    *,
    progress: Progress | None = None,
    resume: bool = False,
    digest: str | None = None,
    split_seed: int | None = None,
    recorded: Mapping[str, Any] | None = None,
    seen: Marks = NONE,
) -> TrainResult:
    """Train ``config.members`` pairs of members on all questions of ``table``.

    As ``rlbudget.agents.ppo.train``, which trains a single policy, otherwise. Raises ``UserError``
    for fewer than two questions, for a folder that holds another run, and at once for one that
    another process trains in.
    """
    questions = len(np.unique(table.question_ids))
    folds = min(config.members, questions)
    if folds < 2:
        raise UserError("training needs at least two questions: record more questions")
    with locked(run_dir):
        return _train(
            table, replace(config, total_timesteps=config.steps(questions)), Path(run_dir),
            folds=folds, progress=progress, resume=resume, digest=digest, split_seed=split_seed,
            recorded=recorded, seen=seen,
        )  # fmt: skip


def _train(
    table: TraceTable,
    config: PPOConfig,
    run_dir: Path,
    *,
    folds: int,
    progress: Progress | None,
    resume: bool,
    digest: str | None,
    split_seed: int | None,
    recorded: Mapping[str, Any] | None,
    seen: Marks,
) -> TrainResult:
    columns = training_columns(table, config)
    run = describe(table, columns, config, digest, split_seed, recorded)
    all_seen = together(marks_of(table.question_ids), seen)
    run["seen"] = None if all_seen is None else as_text(all_seen)
    if (run_dir / RUN).exists():
        if not resume:
            raise UserError(f"{run_dir} already holds a run: resume it or choose another folder")
        before = read_run(run_dir)
        check_same(run_dir, run, before)
        if before.get("swept") is not None:
            return TrainResult(run_dir, before["validation"])
    fold = fold_of_traces(table, folds, config.seed)
    parts = make_folds(columns, fold)
    log = EnsembleLog(open_log(run_dir, run, anew=True), run, folds)
    save = _Saving(run_dir, run, config, columns)

    def looked(done: int, members: list[Member]) -> None:
        log.look(done, members)
        save(done, members)

    looks = train_members(parts, config, progress=progress, on_look=looked)
    actor, of_folds, doubts = _chosen(columns, fold, parts, looks, config.preset)
    given = OutOfFold(
        table, fold, play_of(columns, fold, of_folds, config.preset), [part.tried for part in parts]
    )
    swept = sweep(table, operating_prices(columns.scaling.token_price), given.play)
    found = estimate(given, relative_prices(table), swept, seed=config.seed)
    found["doubts"] = list(doubts)
    score = estimated(found)
    run |= {
        "timesteps": config.total_timesteps,
        "validation": score.as_dict(),
        "out_of_fold": found,
    }
    log.end(found, score, config.total_timesteps or 0)
    save_best(run_dir, actor, columns.scaling.mean, columns.scaling.std, run)
    save_rules(run_dir, run, given, parts, columns.scaling)
    run["swept"] = {"questions": found["questions"], "prices": [asdict(one) for one in swept]}
    save_run(run_dir, run)
    return TrainResult(run_dir, run["validation"])


def _chosen(
    columns: ReplayColumns,
    fold: Ints,
    parts: Sequence[Fold],
    looks: Sequence[Sequence[Member]],
    preset: str,
) -> tuple[Actor, list[Actor], Doubts]:
    """The network to freeze, for each fold the one that has not seen it, and the doubts of the
    first. What is chosen for a fold is chosen by the others."""  # fmt: skip
    table, scaling = columns.table, columns.scaling
    prices = list(relative_prices(table).values())
    weights = relative_weights([bounds(table, table, price) for price in prices], SMALLEST_GAP)
    sizes = [len(part.own) for part in parts]
    places = [float(scaling.price(price)) for price in prices]

    def of(members: Sequence[Member], place: int | None = None) -> Actor:
        return merged([one.actor for one in members if place is None or one.fold == place])

    bare = [of(best_members(looks, sizes, weights, k), k) for k in range(len(parts))]
    gained = gains(table, prices, play_of(columns, fold, bare, preset))
    _, first = np.unique(table.question_ids, return_index=True)
    fold_of_question = fold[first]
    of_folds = []
    for k, actor in enumerate(bare):
        doubts = choose_doubts(gained[:, :, fold_of_question != k], weights)
        of_folds.append(doubtful(actor, doubts, places))
    doubts = choose_doubts(gained, weights)
    return doubtful(of(best_members(looks, sizes, weights)), doubts, places), of_folds, doubts


def _save(
    run_dir: Path, members: Sequence[Member], columns: ReplayColumns, run: dict[str, Any]
) -> None:
    actor = merged([member.actor for member in members])
    save_best(run_dir, actor, columns.scaling.mean, columns.scaling.std, run)


class _Saving:
    """The unfinished policy, on disk some times in a training."""

    def __init__(
        self, run_dir: Path, run: dict[str, Any], config: PPOConfig, columns: ReplayColumns
    ) -> None:
        assert config.total_timesteps is not None
        self._run_dir, self._run, self._columns = run_dir, run, columns
        self._total, self._saved = config.total_timesteps, -1

    def __call__(self, done: int, members: Sequence[Member]) -> None:
        tenth = min(_SAVED * done // self._total, _SAVED - 1)
        if tenth > self._saved:
            self._saved = tenth
            run = {**self._run, "timesteps": done, "validation": None}
            _save(self._run_dir, members, self._columns, run)
