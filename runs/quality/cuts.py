"""Training and held-out questions of real records, again and again, and what methods give on them.

A *unit* is one cut of one record: so many questions to train on, others held out. What it gives is
one JSON object, mean utilities at the relative prices and a few numbers more, so that units can be
made one after the other, by several calls, and be put together later. ``runs.quality.real_records``
and ``runs.quality.few_questions`` do.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.agents.clone import TriedRule, try_rules
from rlbudget.agents.config import PPOConfig, ensemble_of
from rlbudget.agents.crossfit import train_crossfit
from rlbudget.agents.crossfit_rivals import crossfit_gradient, crossfit_q
from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.ppo import train
from rlbudget.arrays import Floats
from rlbudget.evaluate.measure import Learned
from rlbudget.policy import outcomes
from rlbudget.policy.dial import EFFORTS
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import Preset, feature_names
from rlbudget.policy.outcomes import RELATIVE_PRICES, Outcome, full_stops, outcome, utility
from rlbudget.policy.replay import replay
from rlbudget.signals.tokens import CHOICE
from rlbudget.traces.columns import table_of
from rlbudget.traces.interchange import read_jsonl
from rlbudget.traces.store import load_table
from rlbudget.traces.table import TraceTable, split_questions, without
from runs.common import KEPT_TRACES, ROOT

GPQA = ROOT.parent / "shared" / "data" / "gpqa" / "traces.jsonl"
"""a record that is not the project's: its numbers are reported, never its data"""
VALIDATION = 0.2
"""of the training questions, for what one policy is chosen by"""


@dataclass(frozen=True, slots=True)
class Cut:
    """A unit before it is measured."""

    source: str
    preset: Preset
    size: int
    number: int
    """of the cut, and the seed of what is trained on it"""
    fold: int
    train: TraceTable
    held_out: TraceTable

    @property
    def key(self) -> str:
        """Its name among others."""
        return f"{self.source}/{self.preset}/{self.size}/{self.number}/{self.fold}"


def record_of(source: str, embedded: Path) -> TraceTable:
    """The traces of a source: ``gpqa``, ``smollm2`` or those of the embedded model."""
    if source == "gpqa":
        return table_of(list(read_jsonl(GPQA)))
    return load_table(KEPT_TRACES if source == "smollm2" else embedded)


def folds(source: str, table: TraceTable, preset: Preset, numbers: range) -> Iterator[Cut]:
    """Five folds by question for each assignment of questions to folds."""
    questions = np.unique(table.question_ids)
    for number in numbers:
        place = np.random.default_rng([number, 9]).permutation(len(questions)) % 5
        for fold in range(5):
            inside = np.isin(table.question_ids, questions[place == fold])
            yield Cut(
                source, preset, len(questions), number, fold,
                table.take(np.flatnonzero(~inside)), table.take(np.flatnonzero(inside)),
            )  # fmt: skip


def cuts(
    source: str, table: TraceTable, preset: Preset, size: int, numbers: range
) -> Iterator[Cut]:
    """So many of the questions that are not held out, drawn by the cut's number."""
    held_out = split_questions(table, seed=0).held_out
    pool = without(table, held_out)
    for number in numbers:
        drawn = np.random.default_rng(number).permutation(np.unique(pool.question_ids))[:size]
        rows = np.flatnonzero(np.isin(pool.question_ids, drawn))
        yield Cut(source, preset, size, number, 0, pool.take(rows), held_out)


def measured(cut: Cut) -> dict[str, Any]:
    """What every method but the rivals gives on a cut, JSON-ready: sums of utilities over the
    held-out traces."""  # fmt: skip
    train_set, held_out = cut.train, cut.held_out
    prices = [outcomes.token_price_of(relative, train_set) for relative in RELATIVE_PRICES]
    tried = try_rules(train_set)
    given: dict[str, list[Outcome]] = {
        "full": [outcome(held_out, full_stops(held_out)) for _ in prices],
        "oracle": [outcome(held_out, outcomes.oracle_stops(held_out, p)) for p in prices],
        "rule by price": [_best(tried, held_out, price) for price in prices],
    }
    for name in sorted({one.rule.name for one in tried} - {"full"}):
        own = [one for one in tried if one.rule.name in ("full", name)]
        given[name] = [_best(own, held_out, price) for price in prices]
    began = time.process_time()
    features = feature_names(train_set.signals, cut.preset, choices=CHOICE in train_set.signals)
    config = PPOConfig(preset=cut.preset, seed=cut.number, features=features)
    ensemble = ensemble_of(config, len(np.unique(train_set.question_ids)))
    policy = _policy(lambda run: train_crossfit(train_set, ensemble, run))
    seconds = time.process_time() - began
    given["ensemble"] = [replay(policy, held_out, price).outcome for price in prices]
    questions = np.unique(train_set.question_ids)
    order = np.random.default_rng([cut.number, 7]).permutation(questions)
    validation = np.isin(train_set.question_ids, order[: round(VALIDATION * len(order))])
    parts = [train_set.take(np.flatnonzero(rows)) for rows in (~validation, validation)]
    one = _policy(lambda run: train(parts[0], parts[1], config, run))
    given["one ppo"] = [replay(one, held_out, price).outcome for price in prices]
    found = policy.out_of_fold
    assert found is not None
    return {
        "key": cut.key,
        "source": cut.source,
        "preset": cut.preset,
        "size": cut.size,
        "number": cut.number,
        "fold": cut.fold,
        "traces": len(held_out),
        "seconds": seconds,
        "utility": _sums(given, prices),
        "promised": {k: found[k] for k in ("oracle_gap_closed", "oracle_gap_closed_ci90", "rule",
                                           "over_rule", "doubts")},
        "points": _points(policy, held_out),
    }  # fmt: skip


def rivals(cut: Cut) -> dict[str, Any]:
    """What the learners that are cross-fitted as the ensemble is give, on the same observation: a
    part of the cut's unit."""  # fmt: skip
    train_set, preset, seed = cut.train, cut.preset, cut.number
    prices = [outcomes.token_price_of(relative, train_set) for relative in RELATIVE_PRICES]
    features = feature_names(train_set.signals, preset, choices=CHOICE in train_set.signals)
    learners: dict[str, Learned] = {
        "fitted-q": crossfit_q(train_set, prices, preset=preset, features=features, seed=seed),
        "exact-pg": crossfit_gradient(train_set, preset=preset, features=features, seed=seed),
    }
    given = {
        name: [_stopped(learner, cut.held_out, price) for price in prices]
        for name, learner in learners.items()
    }
    return {"key": cut.key, "utility": _sums(given, prices)}


def _sums(given: Mapping[str, list[Outcome]], prices: list[float]) -> dict[str, list[float]]:
    return {
        name: [float(utility(o, p).sum()) for o, p in zip(of, prices, strict=True)]
        for name, of in given.items()
    }


def _stopped(learner: Learned, held_out: TraceTable, price: float) -> Outcome:
    charged = outcomes.charged_by(learner.preset, held_out, learner.features)
    return outcome(held_out, learner.stops(held_out, price), probes_charged=charged)


def _best(tried: list[TriedRule], held_out: TraceTable, price: float) -> Outcome:
    means = [float(utility(one.outcome, price).mean()) for one in tried]
    best = tried[int(np.argmax(means))]
    return best.rule.outcome(held_out, best.parameters)


def _policy(fit: Callable[[Path], Any]) -> Policy:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        fit(run)
        return policy_of_run(run)


def _points(policy: Policy, held_out: TraceTable) -> dict[str, dict[str, float]]:
    """What the efforts of the policy give on the held-out traces."""
    full = outcome(held_out, full_stops(held_out))
    found = {}
    for effort, point in policy.operating_points.items():
        price = point["token_price"]
        at = replay(policy, held_out, price).outcome if price else full
        found[effort] = {
            "may_lose": EFFORTS[effort],
            "price": price,
            "lost": float((full.exact_match - at.exact_match).mean()),
            "saved": float(1 - at.tokens.sum() / full.tokens.sum()),
        }
    return found


def gaps(utilities: dict[str, Floats], name: str) -> Floats:
    """(prices,) of sums of utilities: shares of the gap between constant budget and oracle."""
    fixed, oracle = utilities["fixed"], utilities["oracle"]
    share: Floats = (utilities[name] - fixed) / (oracle - fixed)
    return share


def append(file: Path, unit: dict[str, Any]) -> None:
    """Add a unit to a file of them, one a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(unit) + "\n")


def make(cut: Cut, file: Path, made: dict[str, dict[str, Any]], *, with_rivals: bool) -> None:
    """Add to the file what it lacks of a cut; ``made`` are the units that it had, by key."""
    unit = made.get(cut.key, {"utility": {}})
    if "ensemble" not in unit["utility"]:
        append(file, measured(cut))
    if with_rivals and "fitted-q" not in unit["utility"]:
        append(file, rivals(cut))
    print(cut.key, flush=True)


def units_in(file: Path) -> dict[str, dict[str, Any]]:
    """Key -> the unit of a file, its parts put together, in order; none where there is none yet."""
    found: dict[str, dict[str, Any]] = {}
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            part = json.loads(line)
            before = found.get(part["key"], {})
            both = {**before.get("utility", {}), **part["utility"]}
            found[part["key"]] = {**before, **part, "utility": both}
    return found
