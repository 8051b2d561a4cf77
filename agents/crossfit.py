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
import torch
from stable_baselines3.common.logger import configure

from rlbudget.agents.clone import TriedRule, as_paid, best_of, named, try_rules
from rlbudget.agents.config import PPOConfig
from rlbudget.agents.crossfit_log import EnsembleLog
from rlbudget.agents.doubt import Doubts, choose_doubts, doubtful, gains, relative_weights
from rlbudget.agents.freeze import RULES, RUN, read_run
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
from rlbudget.agents.tuned_rule import can_freeze, tuned_rule
from rlbudget.agents.validation import SMALLEST_GAP, PriceResult, Score, bounds
from rlbudget.arrays import Ints
from rlbudget.envs.replay_core import ReplayColumns
from rlbudget.errors import UserError
from rlbudget.files.folders import locked
from rlbudget.policy.operating import sweep
from rlbudget.policy.outcomes import Outcome, charged_by, operating_prices, outcome
from rlbudget.policy.prices import price_grid
from rlbudget.policy.seen import NONE, Marks, as_text, marks_of, together
from rlbudget.traces.table import TraceTable

_SAVED = 10
"""times in a training that what there is is saved"""
RULE_PRICES = 13
"""that a rule is tuned to, over the range of prices"""


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
    logger = configure(str(run_dir), ["tensorboard"])
    log = EnsembleLog(logger, run, folds)
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
    score = _score(found)
    run |= {
        "timesteps": config.total_timesteps,
        "validation": score.as_dict(),
        "out_of_fold": found,
    }
    log.end(found, score, config.total_timesteps or 0)
    save_best(run_dir, actor, columns.scaling.mean, columns.scaling.std, run)
    _save_rules(run_dir, run, given, parts, columns)
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


def _save_rules(
    run_dir: Path,
    run: Mapping[str, Any],
    given: OutOfFold,
    parts: Sequence[Fold],
    columns: ReplayColumns,
) -> None:
    """A run folder for each rule that can be frozen, within the run folder.

    As a policy it pays for trial answers where it never stops, too.
    """
    scaling, table = columns.scaling, given.table
    grid = price_grid(scaling.token_price, RULE_PRICES)
    tried = try_rules(table)
    for name in sorted({one.rule.name for one in tried if can_freeze(one.rule.name)}):
        own = named(tried, name)
        preset = "free" if own[-1].rule.probes_charged == "none" else "probe"
        own = as_paid(table, own, preset)
        paid = [as_paid(part.train, named(part.tried, name), preset) for part in parts]
        chosen = [best_of(own, price) for price in grid]
        tuned = tuned_rule(name, table, chosen, [float(scaling.price(price)) for price in grid])
        at = [_rule_out_of_fold(given, paid, price, preset) for price in grid]

        def play(token_price: float, _: float = 0.0, /, at: list[Outcome] = at) -> Outcome:
            return at[int(np.argmin(np.abs(np.log(np.array(grid) / token_price))))]

        of_rule = replace(given, play=play)
        swept = sweep(table, operating_prices(scaling.token_price), play)
        found = estimate(of_rule, relative_prices(table), swept, seed=run["seed"])
        about = {
            **run,
            "preset": preset,
            "features": [tuned.feature],
            "config": None,
            "rule": name,
            "validation": _score(found).as_dict(),
            "out_of_fold": found,
            "swept": {"questions": found["questions"], "prices": [asdict(one) for one in swept]},
        }
        folder = run_dir / RULES / name
        tensors = {name: torch.from_numpy(value) for name, value in tuned.tensors.items()}
        mean, std = (tuned.tensors[part] for part in ("obs_mean", "obs_std"))
        save_best(folder, tensors, mean, std, about)


def _rule_out_of_fold(
    given: OutOfFold, paid: Sequence[Sequence[TriedRule]], price: float, preset: str
) -> Outcome:
    """A rule with the parameters that are best at a price on the other folds, as a policy pays."""
    best = [best_of(tried, price) for tried in paid]

    def of_fold(place: int, own: TraceTable) -> Outcome:
        stops = best[place].rule.stops(own, best[place].parameters)
        return outcome(own, stops, probes_charged=charged_by(preset, own, ()))

    return given.together(of_fold)


def _score(found: Mapping[str, Any]) -> Score:
    """The estimate as the score of a validation."""
    names = ("relative_price", "token_price", "exact_match", "tokens", "utility")
    prices = tuple(
        PriceResult(
            oracle_gap_closed=_number(row["oracle_gap_closed"]), **{n: row[n] for n in names}
        )
        for row in found["prices"]
    )
    gap = _number(found["oracle_gap_closed"])
    return Score(prices, float(np.mean([row.utility for row in prices])), gap, gap)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


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
