"""From recordings of several models on the same questions to a chooser in a folder.

The chances are fitted on training questions at six relative prices of the dearest member, by the
networks of ``rlbudget.strategies.impact``. After the first member has answered, they are fitted at
its own ends and at ends drawn from its checkpoints: few questions hold few of its mistakes, and
each shows itself at many checkpoints. When to choose is decided on validation questions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlbudget.agents.training import recorded_of
from rlbudget.arrays import Bools, Floats
from rlbudget.errors import UserError
from rlbudget.evaluate.unseen import fitted_to, folder_texts, split_seed_of, unseen_rows
from rlbudget.evaluate.verdicts import Paired, most_utility, paired
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import feature_names, observe
from rlbudget.policy.outcomes import (
    NATURAL_END,
    RELATIVE_PRICES,
    Outcome,
    token_price_of,
    utility,
)
from rlbudget.policy.replay import Replay
from rlbudget.policy.seen import as_text, marks_of
from rlbudget.signals.questions import CONTEXT_SIGNALS, TASK_SIGNALS, context_columns
from rlbudget.strategies.chooser.chooser import Chooser, MemberOf, Way
from rlbudget.strategies.chooser.folder import save_chooser
from rlbudget.strategies.chooser.members import (
    WHEN,
    Played,
    When,
    best_by_task,
    chosen,
    oracle_choice,
    play,
)
from rlbudget.strategies.chooser.record import TrackRecord, running_record
from rlbudget.strategies.chooser.rows import Columns, columns_of, matrix
from rlbudget.strategies.chooser.together import (
    Member,
    Together,
    TogetherSplit,
    split_together,
)
from rlbudget.strategies.correction.doubt import exit_table
from rlbudget.strategies.correction.recheck import THINKING_CHECKS, thinking_checks
from rlbudget.strategies.correction.written import WRITTEN_SIGNALS
from rlbudget.strategies.impact import ImpactModel, fit_chance
from rlbudget.traces.pairs import answers_of, side_by_side
from rlbudget.traces.store import digest, iter_traces
from rlbudget.traces.trace import Trace, family_of

if TYPE_CHECKING:
    from rlbudget.console import Advance

DRAWN = 2
"""ends drawn from the first member's checkpoints, of each trace at each price"""
NETWORKS = 4
"""whose mean is each chance: one alone depends on its seed more than a question in a hundred"""
NAMELESS = 0.2
"""share of the training questions whose task is not told: a live request may name none"""


@dataclass(frozen=True, slots=True)
class ChooserAtPrice:
    """Mean held-out utility at one relative price of the dearest member."""

    relative_price: float
    way: Way
    utilities: Mapping[str, float]
    """method -> utility: each member alone, the best by task, the chooser, the oracle"""
    best: str
    """the member alone that is best here, in hindsight"""
    ahead: Paired
    """the chooser's utility minus that one's"""


@dataclass(frozen=True, slots=True)
class FittedChooser:
    """A chooser and what it earns on held-out questions."""

    chooser: Chooser
    questions: int
    """held out"""
    prices: tuple[ChooserAtPrice, ...]
    notes: tuple[str, ...]


def fit_chooser(
    folders: Sequence[Path],
    out: Path,
    *,
    ratios: Sequence[float],
    policies: Sequence[Policy | None],
    seed: int = 0,
    split_seed: int = 0,
    progress: Advance | None = None,
) -> FittedChooser:
    """Fit on the training questions that all folders hold, save, measure on the held-out ones.

    ``ratios`` and ``policies`` are one a folder; the first folder's model answers first. The split
    is that of the policies where they were trained on these traces, and held-out questions that one
    of them has seen are not measured. Raises ``UserError`` as ``load_together`` does.
    """
    fitted = {
        f"the policy of {folder}": fitted_to(policy)
        for folder, policy in zip(folders, policies, strict=True)
        if policy is not None
    }
    texts, all_of_them = folder_texts(*folders), load_together(folders, ratios=ratios)
    split_seed = split_seed_of(fitted, all_of_them.question_ids, texts, split_seed)
    split = split_together(all_of_them, seed=split_seed)
    unseen, notes = unseen_rows(split.held_out.question_ids, texts, fitted)
    split = dataclasses.replace(split, held_out=split.held_out.take(np.flatnonzero(unseen)))
    members = tuple(
        MemberOf(trace.model, float(ratio), policy, recorded_of(trace))
        for trace, ratio, policy in zip(
            (next(iter_traces(folder)) for folder in folders), ratios, policies, strict=True
        )
    )
    chooser = fit(split.train, split.validation, members, seed=seed, progress=progress)
    chooser = dataclasses.replace(
        chooser,
        trained={
            "traces": [digest(folder) for folder in folders],
            "split_seed": split_seed,
            "seed": seed,
            "seen": as_text(
                marks_of([*split.train.question_ids, *split.validation.question_ids], texts)
            ),
        },
    )
    save_chooser(out, chooser)
    held_out = split.held_out
    return FittedChooser(
        chooser, len(np.unique(held_out.question_ids)), measure(chooser, split), tuple(notes)
    )


def fit(
    train: Together,
    validation: Together,
    members: Sequence[MemberOf],
    *,
    seed: int = 0,
    progress: Advance | None = None,
) -> Chooser:
    """Fit on ``train``; when to choose at each price is decided on ``validation``.

    The two must share no question (``UserError``). Needs scikit-learn (``UserError`` without it).
    """
    if np.intersect1d(train.question_ids, validation.question_ids).size:
        raise UserError("a question is both in the training and in the validation recordings")
    generator = np.random.default_rng(seed)
    policies = [member.policy for member in members]
    prices = token_prices_of(train)
    played, judged = (play(part, prices, policies) for part in (train, validation))
    before, record = running_record(played)
    wrong: dict[When, tuple[ImpactModel, ...]] = {}
    for step, when in enumerate(WHEN):
        if progress is not None:
            progress(step, len(WHEN))
        wrong[when] = _fit_when(when, played, judged, before, record, generator, seed)
    if progress is not None:
        progress(len(WHEN), len(WHEN))
    ways = tuple(Way("before", 0) for _ in prices)
    chooser = Chooser(tuple(members), np.array(prices), ways, wrong, record)
    ways = tuple(_best_way(chooser, part) for part in judged)
    kept = {when: own for when, own in wrong.items() if Way(when) in ways}
    return dataclasses.replace(chooser, ways=ways, wrong=kept)


def token_prices_of(train: Together) -> list[float]:
    """The token prices of the dearest member at the six relative prices."""
    dearest = max(train.members, key=lambda member: member.ratio)
    return [token_price_of(relative, dearest.table) for relative in RELATIVE_PRICES]


def _best_way(chooser: Chooser, played: Played) -> Way:
    """Of highest utility; of equal ones the one that looks at least."""
    members = len(chooser.members)
    ways = [*(Way("before", place) for place in range(members)), *map(Way, WHEN)]
    earned = [utility(chooser.replay(played, way), played.token_price).mean() for way in ways]
    return ways[int(np.argmax(earned))]


def _fit_when(
    when: When,
    played: Sequence[Played],
    judged: Sequence[Played],
    before: Floats,
    record: TrackRecord,
    generator: np.random.Generator,
    seed: int,
) -> tuple[ImpactModel, ...]:
    """The members' chances to be wrong, as they are seen at this time."""
    parts: list[tuple[Columns, list[Bools]]] = []
    for place, part in enumerate(played):
        told = before[:, 0, place].copy()
        told[generator.random(len(told)) < NAMELESS] = record.of("")[0, place]
        drawn = [_drawn(part, generator) for _ in range(DRAWN)] if when == "after_first" else []
        parts += [(columns_of(one, told, when), _wrong(one)) for one in (part, *drawn)]
    unseen = [
        (columns_of(part, _record_of(record, part, place), when), _wrong(part))
        for place, part in enumerate(judged)
    ]
    names = tuple(name for name, column in parts[0][0].items() if not np.isnan(column).all())
    otherwise = np.array(
        [np.nanmean(np.concatenate([columns[name] for columns, _ in parts])) for name in names]
    )
    x, x_unseen = (
        np.concatenate([matrix(columns, names, otherwise) for columns, _ in rows])
        for rows in (parts, unseen)
    )
    models = []
    for member in range(len(played[0].replays)):
        y, y_unseen = (
            np.concatenate([wrong[member] for _, wrong in rows]) for rows in (parts, unseen)
        )
        models.append(_fit_member(names, (x, y), (x_unseen, y_unseen), seed))
    return tuple(models)


def _fit_member(
    names: tuple[str, ...],
    train: tuple[Floats, Bools],
    validation: tuple[Floats, Bools],
    seed: int,
) -> ImpactModel:
    (x, y), (_, y_unseen) = train, validation
    if len(np.unique(y)) < 2 or len(np.unique(y_unseen)) < 2:
        # Nothing to tell apart: the share of wrong answers, one of each kind added.
        share = (y.sum() + 1) / (len(y) + 2)
        zeros = np.zeros((len(names), 1))
        return ImpactModel(
            names, x.mean(axis=0), np.ones(len(names)), (zeros,),
            (np.array([np.log(share / (1 - share))]),),
        )  # fmt: skip
    parts = (x.astype(np.float32), y), (validation[0].astype(np.float32), y_unseen)
    return _mean_of(
        [
            fit_chance(
                names, *parts, hidden=(16,), epochs=15, weight_decay=1.0, seed=NETWORKS * seed + own
            )
            for own in range(NETWORKS)
        ]
    )


def _mean_of(models: Sequence[ImpactModel]) -> ImpactModel:
    """Networks of one hidden layer on one normaliser as one: the mean of their log-odds."""
    first, n = models[0], len(models)
    return dataclasses.replace(
        first,
        weights=(
            np.hstack([model.weights[0] for model in models]),
            np.vstack([model.weights[1] for model in models]) / n,
        ),
        biases=(
            np.concatenate([model.biases[0] for model in models]),
            np.mean([model.biases[1] for model in models], axis=0),
        ),
    )


def _drawn(played: Played, generator: np.random.Generator) -> Played:
    """The same questions, the first member stopped at any checkpoint."""
    first, *others = played.replays
    lengths = first.table.lengths
    stops = np.where(lengths > 0, generator.integers(0, np.maximum(lengths, 1)), NATURAL_END)
    anywhere = Replay(first.table, stops, "none", np.zeros(len(first.table.thinking_tokens)))
    return dataclasses.replace(played, replays=(anywhere, *others))


def _wrong(played: Played) -> list[Bools]:
    return [one.exact_match == 0 for one in played.alone]


def _record_of(record: TrackRecord, played: Played, place: int) -> Floats:
    """(n, k) exact match on each question's task."""
    tasks = played.together.tasks.tolist()
    return np.array([record.of(task)[0, place] for task in tasks])


def measure(chooser: Chooser, split: TogetherSplit) -> tuple[ChooserAtPrice, ...]:
    """Against each member alone, the best by task and the oracle, on held-out questions."""
    prices = chooser.token_prices.tolist()
    policies = [member.policy for member in chooser.members]
    known = [play(part, prices, policies) for part in (split.train, split.validation)]
    found = []
    for place, played in enumerate(play(split.held_out, prices, policies)):
        price = prices[place]
        parts = [part[place] for part in known]
        by_task = best_by_task(parts, played.together.tasks.tolist())
        own = chooser.replay(played)
        alone = dict(zip(member_names(chooser.members), played.alone, strict=True))
        ways: dict[str, Outcome] = {
            **alone,
            "best by task": chosen(played, by_task, "before"),
            "chooser": own,
            "oracle": chosen(played, oracle_choice(played), "before"),
        }
        each = {name: utility(outcome, price) for name, outcome in ways.items()}
        best = max(alone, key=lambda name: float(each[name].mean()))
        most = most_utility(price, *ways.values())
        found.append(
            ChooserAtPrice(
                RELATIVE_PRICES[place],
                chooser.ways[place],
                {name: float(values.mean()) for name, values in each.items()},
                best,
                paired(each["chooser"] - each[best], played.together.question_ids, most=most),
            )
        )
    return tuple(found)


def member_names(members: Sequence[MemberOf]) -> list[str]:
    """Their models' names, a number behind those that are there twice."""
    names = [member.name or "model" for member in members]
    return [
        name if names.count(name) == 1 else f"{name} ({place + 1})"
        for place, name in enumerate(names)
    ]


def load_together(folders: Sequence[Path | str], *, ratios: Sequence[float]) -> Together:
    """The traces of the questions that all folders hold, in the order of the first.

    ``ratios`` are one a folder. Raises ``UserError`` for fewer than two folders, for ratios out of
    (0, 1] or of another number, and for folders without a question in common.
    """
    if len(folders) < 2 or len(ratios) != len(folders):
        raise UserError(
            f"{len(folders)} recordings and {len(ratios)} ratios: give at least two recordings, and"
            " a ratio for each"
        )
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise UserError(
                f"ratio is {ratio:g}: a token of each model costs more than 0 and at most 1 of one"
                " of the dearest"
            )
    codes: dict[object, int] = {}
    members, questions, tasks = [], list[str](), list[str]()
    for folder, ratio in zip(folders, ratios, strict=True):
        traces = list(iter_traces(folder))
        members.append(_member(folder, traces, float(ratio), codes))
        questions = questions or [trace.question for trace in traces]
        tasks = tasks or [family_of(trace) for trace in traces]
    places = side_by_side([member.table for member in members])
    columns = context_columns(questions)
    context = np.stack([columns[name] for name in CONTEXT_SIGNALS], axis=1)
    return Together(
        tuple(member.take(own) for member, own in zip(members, places, strict=True)),
        np.array(tasks, dtype=np.str_)[places[0]],
        context[places[0]],
    )


def _member(
    folder: Path | str, traces: Sequence[Trace], ratio: float, codes: dict[object, int]
) -> Member:
    table = exit_table(folder)
    free = set(table.signals) - {*WRITTEN_SIGNALS, *CONTEXT_SIGNALS, *TASK_SIGNALS}
    names = feature_names(free, "free")
    seen: dict[str, Floats] = dict(
        zip(names, observe(table, names).astype(np.float64).T, strict=True)
    )
    checks: dict[str, Floats] = {}
    if set(THINKING_CHECKS) <= set(table.signals):
        seen |= {name: table.signals[name] for name in THINKING_CHECKS}
        made = [thinking_checks(t.meta["thinking"], t.final.answer) for t in traces]
        checks = {name: np.array([one[name] for one in made]) for name in THINKING_CHECKS}
    return Member(table, ratio, answers_of(traces, codes), checks, seen)
