"""A search over network and schedule with Optuna, and whether its winner beats the defaults.

    python -m runs.quality.sweep [--traces FOLDER] [--n 3600] [--trials 40] [--preset free]

Each trial trains PPO on a part of the training and validation questions, keeps the best policy by
a second part, and counts its selection score on a third; the mean over ``RESPLITS`` seeded ways to
cut is the objective. A trial that lags behind the median of the others is given up. The winner
then meets the defaults on ways to cut, and seeds, that the search never saw. The held-out
questions are not looked at. The study is kept in ``out/sweep/``: the same command goes on with
it. Writes ``runs/results/sweep.json``.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend
from safetensors.torch import load_file

from rlbudget.agents.actor import actor_stop_chances
from rlbudget.agents.config import QUESTIONS_FOR_MOST, PPOConfig
from rlbudget.agents.ppo import train, training_columns
from rlbudget.agents.validation import Validation
from rlbudget.evaluate.verdicts import verdict_of
from rlbudget.policy.bootstrap import interval, resample
from rlbudget.policy.observation import Preset
from rlbudget.traces.store import digest, load_table
from rlbudget.traces.table import Split, TraceTable, split_questions, without
from runs.common import OUT, parser_of, recorded, write_result

RESPLITS = 4
FRESH = 8
"""ways to cut, and seeds, for the last comparison"""
MARGIN = 0.01
"""of the selection score, that the defaults may be below the best trial"""
PARTS = (0.6, 0.2)
"""shares of the questions to fit on and to select by; the rest is scored"""
PRESETS: tuple[Preset, ...] = ("free", "probe")
STUDY = OUT / "sweep"
HIDDEN = {"32x32": (32, 32), "64x32": (64, 32), "64x64": (64, 64), "96x64": (96, 64)}
SEARCHED = ("hidden", "learning_rate", "total_timesteps", "n_epochs", "weight_decay",
            "exploration", "input_noise")  # fmt: skip


def main() -> None:
    """Search, compare, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--trials", type=int, default=40, help="in all, those kept counted")
    parser.add_argument("--preset", choices=("free", "probe"), default="free", help="searched on")
    parser.add_argument("--seed", type=int, default=0, help="of recording, split and search")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        traces = recorded(args.traces, Path(folder), args.n, args.seed)
        table, contents = load_table(traces), digest(traces)
        pool = without(table, split_questions(table, seed=args.seed).held_out)
        study = search(pool, args.preset, args.trials, f"{args.preset}-{contents[:12]}", args.seed)
        best = config_of(study.best_trial.params, args.preset)
        rows, details = compare(pool, PPOConfig(preset=args.preset), best)
    write_result(
        "sweep", rows, reproduce="python -m runs.quality.sweep", seed=args.seed,
        searched_on=args.preset,
        traces_digest=contents, resplits=RESPLITS, fresh_resplits=FRESH,
        defaults=searched(PPOConfig()), best=searched(best), **details,
        trials=[
            {"number": t.number, "state": t.state.name.lower(), "params": t.params,
             "scores": list(t.intermediate_values.values()), "value": t.value}
            for t in study.trials
        ],
    )  # fmt: skip


def search(
    pool: TraceTable, preset: Preset, trials: int, name: str, seed: int
) -> optuna.study.Study:
    """The study with ``trials`` trials, the defaults the first."""
    STUDY.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(STUDY / "journal.log")))
    done = [s for s in optuna.get_all_study_summaries(storage) if s.study_name == name]
    already = done[0].n_trials if done else 0
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        # A study that goes on must not draw again what it has drawn.
        sampler=optuna.samplers.TPESampler(seed=seed + already, multivariate=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=6),
    )
    if not already:
        study.enqueue_trial(default_params())

    def objective(trial: optuna.Trial) -> float:
        config = config_of(suggest(trial), preset)
        scores: list[float] = []
        for cut in range(RESPLITS):
            scores.append(score(resplit(pool, cut), replace(config, seed=cut)))
            trial.report(float(np.mean(scores)), cut)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(np.mean(scores))

    def show(study: optuna.study.Study, trial: optuna.trial.FrozenTrial) -> None:
        reached = " ".join(f"{value:.4f}" for value in trial.intermediate_values.values())
        print(trial.number, trial.state.name.lower(), reached, trial.params, flush=True)

    study.optimize(objective, n_trials=max(0, trials - already), callbacks=[show])
    return study


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """A place in the space."""
    return {
        "hidden": trial.suggest_categorical("hidden", list(HIDDEN)),
        "learning_rate": trial.suggest_float("learning_rate", 5e-4, 1e-2, log=True),
        "total_timesteps": trial.suggest_int("total_timesteps", 200_000, 800_000, step=100_000),
        "n_epochs": trial.suggest_int("n_epochs", 2, 6),
        "weight_decay": trial.suggest_float("weight_decay", 1e-3, 3.0, log=True),
        "exploration": trial.suggest_float("exploration", 0.01, 0.3, log=True),
        "input_noise": trial.suggest_float("input_noise", 0.0, 0.5, step=0.05),
    }


def default_params() -> dict[str, Any]:
    """The defaults as a place in the space."""
    config = PPOConfig()
    name = next(name for name, widths in HIDDEN.items() if widths == config.hidden)
    params = {key: getattr(config, key) for key in SEARCHED}
    return {**params, "hidden": name, "total_timesteps": config.steps(QUESTIONS_FOR_MOST)}


def config_of(params: dict[str, Any], preset: Preset) -> PPOConfig:
    """A place in the space as a configuration."""
    return replace(PPOConfig(preset=preset), **{**params, "hidden": HIDDEN[params["hidden"]]})


def searched(config: PPOConfig) -> dict[str, Any]:
    """What is searched, JSON-ready."""
    return {name: value for name, value in asdict(config).items() if name in SEARCHED}


def resplit(pool: TraceTable, seed: int) -> Split:
    """Parts of the pool by question: to fit on, to select by, to score."""
    questions = np.random.default_rng([1, seed]).permutation(np.unique(pool.question_ids))
    ends = (np.cumsum(PARTS) * len(questions)).astype(int)
    parts = [np.isin(pool.question_ids, part) for part in np.split(questions, ends)]
    return Split(*(pool.take(np.flatnonzero(part)) for part in parts))


def score(split: Split, config: PPOConfig) -> float:
    """Selection score, on the part to score, of the policy kept by the part to select by."""
    with tempfile.TemporaryDirectory() as folder:
        train(split.train, split.validation, config, Path(folder) / "run")
        actor = load_file(Path(folder) / "run" / "best.safetensors")
    columns = training_columns(split.train, config)
    assert columns.normaliser is not None
    judge = Validation(split.train, split.held_out, columns.features, columns.normaliser)
    return judge.measure(lambda inputs: actor_stop_chances(actor, inputs)).selection


def compare(
    pool: TraceTable, defaults: PPOConfig, best: PPOConfig
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The winner against the defaults, paired over fresh cuts and seeds, in both presets."""
    rows, details = [], {}
    for preset in PRESETS:
        scores = {
            name: [
                score(resplit(pool, cut), replace(config, preset=preset, seed=cut))
                for cut in range(RESPLITS, RESPLITS + FRESH)
            ]
            for name, config in (("defaults", defaults), ("best", best))
        }
        own, found = (np.array(scores[name]) for name in ("defaults", "best"))
        over = found - own
        cuts = resample(np.arange(FRESH).astype(str), draws=2000, seed=0)
        low, high = interval(cuts.means(over), cuts.questions)
        told = verdict_of((-high, -low), questions=FRESH, margin=MARGIN)
        rows.append(
            {
                "row": f"{preset}: selection score of the defaults against the best trial's"
                f" settings, {FRESH} fresh cuts of the training questions",
                "wanted": f">= {found.mean() - MARGIN:.3f} ({found.mean():.3f} - {MARGIN:g}), with"
                " the whole 95% interval",
                "reached": f"{own.mean():.3f}; best trial ahead by {over.mean():+.3f}"
                f" [{low:+.3f}, {high:+.3f}] (defaults: {told})",
                "met": told in ("better", "not inferior"),
            }
        )
        details[f"scores_{preset}"] = scores
    return rows, {"comparison": details}


if __name__ == "__main__":
    main()
