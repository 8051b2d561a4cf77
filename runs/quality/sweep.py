"""Regularisation, width and steps of the ensemble by nested cross-validation with Optuna, once.

    python -m runs.quality.sweep [--traces FOLDER] [--n 3600] [--trials 20] [--outer 3]
        [--presets free] [--worker NUMBER] [--report]

The questions of the embedded model and of SmolLM2 that are not held out fall into outer folds. For
each of them a search of its own draws settings; what a setting is worth is what the ensemble's
out-of-fold estimate says (gap closed, the mean over records) after a training on ``QUESTIONS`` of
the other folds' questions. The winner and the defaults then train on the same questions and are
measured on the fold that the search has not seen: whether a search of this size finds better than
the defaults is what that says. A setting that lags behind the median after its first record is
given up. The studies are kept in ``out/sweep/``: the same command goes on with them; ``--worker``
makes one outer fold alone, so that several processes share the work. Writes
``runs/results/sweep.json``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend

from rlbudget.agents.config import MEMBERS, PPOConfig, ensemble_of
from rlbudget.agents.crossfit import train_crossfit
from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.out_of_fold import relative_prices
from rlbudget.agents.validation import bounds
from rlbudget.arrays import Floats
from rlbudget.evaluate.verdicts import verdict_of
from rlbudget.policy.bootstrap import interval, resample
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import PRESETS, Preset
from rlbudget.policy.outcomes import utility
from rlbudget.policy.replay import replay
from rlbudget.traces.store import digest
from rlbudget.traces.table import TraceTable, split_questions, without
from runs.common import KEPT_TRACES, OUT, parser_of, recorded, write_result
from runs.quality.cuts import record_of

QUESTIONS = 250
"""to train on, of each record"""
MARGIN = 0.01
"""of the gap closed, that the defaults may be below what the search found"""
STUDY = OUT / "sweep"
SEARCHED = ("hidden", "members", "learning_rate", "total_timesteps", "weight_decay", "exploration",
            "input_noise")  # fmt: skip
Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Outer:
    """An outer fold of a record."""

    train: TraceTable
    """``QUESTIONS`` of the other folds"""
    own: TraceTable
    """that no search of this fold sees"""


def main() -> None:
    """Search, compare, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--trials", type=int, default=20, help="of each search, those kept counted")
    parser.add_argument("--outer", type=int, default=3, help="outer folds")
    parser.add_argument("--presets", nargs="*", choices=PRESETS, default=["free"])
    parser.add_argument("--worker", type=int, help="search for this outer fold alone")
    parser.add_argument("--seed", type=int, default=0, help="of recording, folds and search")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        traces = recorded(args.traces, Path(scratch), args.n, args.seed)
        tables = {
            "embedded": record_of("embedded", traces),
            "SmolLM2": record_of("smollm2", traces),
        }
        contents = {"embedded": digest(traces), "SmolLM2": digest(KEPT_TRACES)}
    folds = {name: outer_folds(table, args.outer, args.seed) for name, table in tables.items()}
    rows, details = [], {}
    for preset in args.presets:
        studies = []
        for place in range(args.outer) if args.worker is None else [args.worker]:
            records = {name: of[place].train for name, of in folds.items()}
            name = f"{preset}-{place}-of-{args.outer}-{contents['embedded'][:12]}"
            studies.append(search(records, preset, args.trials, name, 100 * args.seed + place))
        if args.worker is None:
            found, details[preset] = compare(folds, preset, studies)
            rows.append(found)
    if args.worker is None:
        write_result(
            "sweep", rows, seed=args.seed, traces_digests=contents, questions=QUESTIONS,
            outer_folds=args.outer, trials=args.trials, defaults=default_params(), searches=details,
        )  # fmt: skip


def outer_folds(table: TraceTable, folds: int, seed: int) -> list[Outer]:
    """By question, of those that are not held out."""
    pool = without(table, split_questions(table, seed=0).held_out)
    questions = np.random.default_rng([seed, 11]).permutation(np.unique(pool.question_ids))
    parts = np.array_split(questions, folds)
    found = []
    for place, own in enumerate(parts):
        rest = np.concatenate([part for other, part in enumerate(parts) if other != place])
        found.append(
            Outer(*(
                pool.take(np.flatnonzero(np.isin(pool.question_ids, some)))
                for some in (rest[:QUESTIONS], own)
            ))
        )  # fmt: skip
    return found


def search(
    records: Mapping[str, TraceTable], preset: Preset, trials: int, name: str, seed: int
) -> optuna.study.Study:
    """The study with ``trials`` trials, the defaults the first."""
    STUDY.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(STUDY / "journal.log")))
    known = [one.study_name for one in optuna.get_all_study_summaries(storage)]
    already = (
        len(optuna.load_study(study_name=name, storage=storage).trials) if name in known else 0
    )
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        # A study that goes on must not draw again what it has drawn.
        sampler=optuna.samplers.TPESampler(seed=1000 * seed + already, multivariate=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
    )
    if not already:
        study.enqueue_trial(default_params())

    def objective(trial: optuna.Trial) -> float:
        settings = suggest(trial)
        scores: list[float] = []
        for step, table in enumerate(records.values()):
            said = fitted(table, preset, settings, seed).out_of_fold
            assert said is not None
            scores.append(float(said["oracle_gap_closed"]))
            trial.report(float(np.mean(scores)), step)
            if step + 1 < len(records) and trial.should_prune():
                raise optuna.TrialPruned
        return float(np.mean(scores))

    def show(study: optuna.study.Study, trial: optuna.trial.FrozenTrial) -> None:
        reached = " ".join(f"{value:.4f}" for value in trial.intermediate_values.values())
        print(name, trial.number, trial.state.name.lower(), reached, trial.params, flush=True)

    study.optimize(objective, n_trials=max(0, trials - already), callbacks=[show])
    return study


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """A place in the space."""
    return {
        "hidden": trial.suggest_categorical("hidden", [8, 16, 32, 64]),
        "members": trial.suggest_int("members", 3, 10),
        "learning_rate": trial.suggest_float("learning_rate", 5e-4, 8e-3, log=True),
        "total_timesteps": trial.suggest_int("total_timesteps", 50_000, 400_000, step=50_000),
        "weight_decay": trial.suggest_float("weight_decay", 1e-3, 3.0, log=True),
        "exploration": trial.suggest_float("exploration", 0.01, 0.3, log=True),
        "input_noise": trial.suggest_float("input_noise", 0.0, 0.5, step=0.05),
    }


def default_params() -> dict[str, Any]:
    """The defaults as a place in the space."""
    config = ensemble_of(PPOConfig(), QUESTIONS)
    params = {key: getattr(config, key) for key in SEARCHED}
    return {**params, "hidden": config.hidden[0], "total_timesteps": config.steps(QUESTIONS)}


def fitted(table: TraceTable, preset: Preset, settings: Settings, seed: int) -> Policy:
    """An ensemble with these settings."""
    own = {**settings, "hidden": (settings["hidden"],)}
    members = own.pop("members", MEMBERS)
    config = ensemble_of(PPOConfig(preset=preset, seed=seed), QUESTIONS, members)
    with tempfile.TemporaryDirectory() as folder:
        train_crossfit(table, replace(config, **own), Path(folder) / "run")
        return policy_of_run(Path(folder) / "run")


def compare(
    folds: Mapping[str, list[Outer]], preset: Preset, studies: list[optuna.study.Study]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The winners against the defaults on the outer folds, paired by question."""
    over: list[Floats] = []
    names: list[str] = []
    details: dict[str, Any] = {"outer": []}
    for place, study in enumerate(studies):
        said = {"best": study.best_trial.params, "estimate": study.best_trial.value}
        for name, of in folds.items():
            outer = of[place]
            values = {
                kind: share(fitted(outer.train, preset, settings, place), outer)
                for kind, settings in (
                    ("defaults", default_params()), ("search", study.best_trial.params)
                )
            }  # fmt: skip
            over.append(values["search"] - values["defaults"])
            names += [f"{name}/{q}" for q in outer.own.question_ids]
            said[name] = {kind: float(value.mean()) for kind, value in values.items()}
        details["outer"].append(said)
        print(place, said, flush=True)
    details["trials"] = [
        [
            {"state": t.state.name.lower(), "params": t.params, "value": t.value,
             "estimates": list(t.intermediate_values.values())}
            for t in study.trials
        ]
        for study in studies
    ]  # fmt: skip
    apart = np.concatenate(over)
    draws = resample(np.array(names), draws=2000, seed=0)
    low, high = interval(draws.means(apart), draws.questions)
    told = verdict_of((-high, -low), questions=draws.questions, margin=MARGIN)
    all_of = {
        kind: np.mean([one[name][kind] for one in details["outer"] for name in folds])
        for kind in ("defaults", "search")
    }
    row = {
        "row": f"{preset}: the defaults against what a search finds, on outer folds that it has not"
        f" seen, gap closed over {len(folds)} records of {QUESTIONS} questions",
        "wanted": f"the defaults at most {MARGIN:g} below, with the whole 95% interval",
        "reached": f"defaults {all_of['defaults']:.3f}, search {all_of['search']:.3f}; ahead by"
        f" {apart.mean():+.3f} [{low:+.3f}, {high:+.3f}] (defaults: {told})",
        "met": told in ("better", "not inferior"),
    }
    return row, details


def share(policy: Policy, outer: Outer) -> Floats:
    """(n,) a trace's part in the gap closed, the mean over the relative prices."""
    parts = []
    for price in relative_prices(outer.train).values():
        fixed, oracle = bounds(outer.train, outer.own, price)
        own = utility(replay(policy, outer.own, price).outcome, price)
        parts.append((own - fixed) / (oracle - fixed))
    mean: Floats = np.mean(parts, axis=0)
    return mean


if __name__ == "__main__":
    main()
