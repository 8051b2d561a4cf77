"""The meta-model: gradient boosting that chooses whose answer to use, by utility.

It looks at the token price, the question's own numbers (``signals.questions``) and the members'
record so far on the question's task; after a member has answered also at how it ended: its
observation at the stop, whether that was its natural end, how long its answer is and how sure it
was; after both, whether they agree.

It is a classifier of "the large member's utility is higher", every question weighted by how much
hangs on it, so that being right is worth what it earns. It is fitted in memory; what is to be
served without scikit-learn is a cascade (``rlbudget.policy.cascade``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from rlbudget.arrays import Bools, Float32s, Floats, Ints
from rlbudget.errors import UserError, missing_extra
from rlbudget.policy.outcomes import NATURAL_END
from rlbudget.policy.replay import Replay
from rlbudget.signals.questions import CONTEXT_SIGNALS, context_signals
from rlbudget.strategies.members import DecodedPair, When
from rlbudget.traces.pairs import Pair

PRIOR = 10.0
"""questions' worth of the mean over all tasks in the record of each"""
MOST_TREES = 120
EXIT_FEATURES = ("probe_confidence", "exit_entropy")
"""what the small member's written answer tells"""


@dataclass(slots=True)
class TrackRecord:
    """Exact match and tokens of both members' full decodes so far, by task."""

    tasks: dict[str, Floats] = field(default_factory=dict)
    """(5,) each: how many, then the sums"""
    whole: Floats = field(default_factory=lambda: np.zeros(5))

    def add(self, task: str, values: Floats) -> None:
        """One question: (4,) exact match of the small and the large member, their tokens."""
        counted = np.array([1.0, *values])
        self.tasks[task] = self.tasks.get(task, np.zeros(5)) + counted
        self.whole += counted

    def of(self, task: str) -> Floats:
        """(4,) means of a task, drawn to those of all; NaN before anything was seen."""
        if not self.whole[0]:
            return np.full(4, np.nan)
        own = self.tasks.get(task, np.zeros(5))
        means: Floats = (own[1:] + PRIOR * self.whole[1:] / self.whole[0]) / (own[0] + PRIOR)
        return means


def running_record(pair: Pair) -> tuple[Floats, TrackRecord]:
    """The record before each question, (n, 4), and that after all of them.

    Questions come in the pair's order, the traces of one at the same time: none sees its own.
    """
    values = np.stack(
        [
            pair.small.final_exact_match,
            pair.large.final_exact_match,
            pair.small.full_tokens,
            pair.large.full_tokens,
        ],
        axis=1,
    ).astype(np.float64)
    rows: dict[str, list[int]] = {}
    for place, question in enumerate(pair.question_ids.tolist()):
        rows.setdefault(question, []).append(place)
    record, before = TrackRecord(), np.empty((len(pair), 4))
    for places in rows.values():
        for place in places:
            before[place] = record.of(str(pair.tasks[place]))
        for place in places:
            record.add(str(pair.tasks[place]), values[place])
    return before, record


@dataclass(frozen=True, slots=True)
class MetaModel:
    """Says which member's answer to use, at any token price it was fitted for."""

    when: When
    record: TrackRecord
    classifier: Any
    """None where one member was the better one whatever was looked at"""
    otherwise: bool
    """whether that is the large one"""
    columns: Ints
    """(k,) what it looks at of all there is: what was not the same everywhere in training"""
    trees: int = 0
    """how many of the classifier's trees are asked"""

    def takes_large(self, decoded: DecodedPair) -> Bools:
        """(n,) whether to take the large member's answer."""
        record = np.array([self.record.of(task) for task in decoded.pair.tasks.tolist()])
        return self._says(_rows(decoded, self.when, record.reshape(-1, 4)))

    def prefers_large(self, question: str, *, task: str, token_price: float) -> bool:
        """Choose before anything is decoded; ``ValueError`` for a model of another time."""
        if self.when != "before":
            raise ValueError(f"this meta-model chooses {self.when}: it needs decodes")
        context = list(context_signals(question).values())
        row = [np.log(token_price), *self.record.of(task), *context]
        return bool(self._says(np.array([row], dtype=np.float64))[0])

    def _says(self, rows: Floats) -> Bools:
        if self.classifier is None:
            return np.full(len(rows), self.otherwise)
        stages = self.classifier.staged_predict_proba(rows[:, self.columns])
        says: Bools = next(islice(stages, self.trees - 1, None))[:, 1] > 0.5
        return says


def fit_meta_model(
    train: Sequence[DecodedPair], validation: Sequence[DecodedPair], when: When, *, seed: int = 0
) -> MetaModel:
    """Fit on ``train``, one pair at several prices; ``validation`` chooses how many trees.

    Where no number of trees beats always taking one member there, that is what it does. The two
    must share no question (``UserError``). Needs scikit-learn (``UserError`` without it).
    """
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
    except ImportError as missing:
        raise missing_extra("train", "scikit-learn") from missing
    pair, other = train[0].pair, validation[0].pair
    if np.intersect1d(pair.question_ids, other.question_ids).size:
        raise UserError("a question is both in the training and in the validation pair")
    running, record = running_record(pair)
    after = np.array([record.of(task) for task in other.tasks.tolist()])
    x, gain = _stacked(train, when, running)
    unseen, at_stake = _stacked(validation, when, after)
    otherwise = bool(at_stake.sum() > 0)
    counts = gain != 0
    known = [column[~np.isnan(column)] for column in x[counts].T]
    columns = np.flatnonzero([len(np.unique(column)) > 1 for column in known])
    x, unseen = x[:, columns], unseen[:, columns]
    constant = MetaModel(when, record, None, otherwise, columns)
    if len(np.unique(gain[counts] > 0)) < 2:
        return constant
    weight = np.abs(gain[counts])

    booster = HistGradientBoostingClassifier(
        learning_rate=0.06,
        max_iter=MOST_TREES,
        max_bins=31,
        max_leaf_nodes=8,
        min_samples_leaf=60,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=seed,
    )
    booster.fit(x[counts], gain[counts] > 0, weight / weight.mean())
    stages = booster.staged_predict_proba(unseen)
    worth = [float(at_stake[chances[:, 1] > 0.5].sum()) for chances in stages]
    if max(worth) <= max(float(at_stake.sum()), 0.0):
        return constant
    return replace(constant, classifier=booster, trees=1 + int(np.argmax(worth)))


def _stacked(parts: Sequence[DecodedPair], when: When, record: Floats) -> tuple[Floats, Floats]:
    """The rows and the gains of all prices."""
    rows = np.concatenate([_rows(part, when, record) for part in parts])
    return rows, np.concatenate([part.gain(when) for part in parts])


def _rows(decoded: DecodedPair, when: When, record: Floats) -> Floats:
    """(n, columns) what the meta-model looks at; NaN where something is not known."""
    pair, n = decoded.pair, len(decoded.pair)
    columns = [np.full((n, 1), np.log(decoded.token_price)), record, _context(pair)]
    if when != "before":
        columns.append(_ending(decoded.small, decoded.seen[0]))
    if when == "after_both":
        columns += [_ending(decoded.large, decoded.seen[1]), _agreement(decoded)]
    return np.concatenate(columns, axis=1)


def _context(pair: Pair) -> Floats:
    """(n, 10) the questions' own numbers, from the first checkpoint of either member."""
    out = np.full((len(pair), len(CONTEXT_SIGNALS)), np.nan)
    for table in (pair.large, pair.small):
        if set(CONTEXT_SIGNALS) <= set(table.signals):
            some = np.flatnonzero(table.lengths)
            first = table.offsets[:-1][some]
            out[some] = np.stack([table.signals[name][first] for name in CONTEXT_SIGNALS], axis=1)
    return out


def _ending(done: Replay, seen: Float32s) -> Floats:
    """(n, F + 5) how a member ended.

    Its observation at the stop, or at the last checkpoint before its natural end; whether it
    stopped; thinking and answer tokens; how sure its exit was.
    """
    table, stopped = done.table, done.stops != NATURAL_END
    rows = table.offsets[:-1] + np.where(stopped, done.stops, table.lengths - 1)
    some = np.flatnonzero(table.lengths)
    out = np.full((len(table), seen.shape[1] + 3 + len(EXIT_FEATURES)), np.nan)
    out[some, : seen.shape[1]] = seen[rows[some]]
    known = {"probe_confidence": table.probe_confidence, **table.signals}
    outcome = done.outcome
    out[:, seen.shape[1]] = stopped
    out[:, seen.shape[1] + 1] = outcome.thinking
    out[:, seen.shape[1] + 2] = outcome.answer
    exits = np.flatnonzero(stopped)
    for place, name in enumerate(EXIT_FEATURES, seen.shape[1] + 3):
        if name in known:
            out[exits, place] = known[name][rows[exits]]
    return out


def _agreement(decoded: DecodedPair) -> Floats:
    """(n, 1) 1 where both members answer the same, 0 where they do not; NaN without their texts."""
    pair = decoded.pair
    if pair.answers is None:
        return np.full((len(pair), 1), np.nan)
    small = pair.answers[0].at(pair.small, decoded.small.stops)
    large = pair.answers[1].at(pair.large, decoded.large.stops)
    agrees: Floats = (small == large)[:, None].astype(np.float64)
    return agrees
